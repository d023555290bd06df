//! `[notify.NAME]`: who is told when something is wrong, and how.

use crate::diagnostic::nearest;
use crate::fields::{At, Fields, Sink};
use crate::made::Secret;
use crate::making::read_secret;
use crate::units::{TimeOfDay, When, parse_time, parse_when};
use crate::unseen::shown_url;
use crate::written::report_name;

/// Somebody who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify {
    pub name: String,
    pub channel: Channel,
    /// The least severity that is told: `S1`, `S2` or `S3`. Default `S2`.
    pub severity: &'static str,
    /// When a summary comes, whether or not anything is wrong.
    pub digest: Option<When>,
    pub quiet: Option<Quiet>,
}

/// Hours, in the schedule's zone, in which only what is `S1` is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    pub from: TimeOfDay,
    /// Not one of them any more. Before `from`: of the next day.
    pub until: TimeOfDay,
}

/// `kind`, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    Mail(MailSpec),
    Ntfy(Hook),
    /// As Slack takes it, and Mattermost, Rocket.Chat, Discord (`…/slack`).
    Slack(Hook),
    /// Any program that takes JSON.
    Webhook(Hook),
    /// A dead-man's switch: an outside service that misses the runs of a host that is gone.
    Ping(Hook),
}

impl Channel {
    /// The word that stands in the file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Mail(_) => "mail",
            Self::Ntfy(_) => "ntfy",
            Self::Slack(_) => "slack",
            Self::Webhook(_) => "webhook",
            Self::Ping(_) => "ping",
        }
    }
}

/// Something that is called over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub url: HookUrl,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<Secret>,
}

/// Whoever knows the URL of a webhook may write there.
#[derive(Clone, PartialEq, Eq)]
pub enum HookUrl {
    /// As it stands in the file.
    Written(String),
    /// Where it is read when it is needed.
    Secret(Secret),
}

impl std::fmt::Debug for HookUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Written(_) => f.write_str("Written(…)"),
            Self::Secret(secret) => secret.fmt(f),
        }
    }
}

/// Mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MailSpec {
    pub to: Vec<String>,
    pub from: String,
    /// `None`: this machine's own `sendmail`.
    pub smtp: Option<Smtp>,
}

/// A server that takes mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smtp {
    /// `smtp://host:25`, which is encrypted if the server can, or `smtps://host:465`.
    pub url: String,
    pub login: Option<(String, Secret)>,
}

/// The kinds there are.
const KINDS: [&str; 5] = ["mail", "ntfy", "slack", "webhook", "ping"];

/// Keys that only some kinds have, and which.
const SOME: [(&str, &[&str]); 14] = [
    ("to", &["mail"]),
    ("from", &["mail"]),
    ("smtp", &["mail"]),
    ("user", &["mail"]),
    ("password_file", &["mail"]),
    ("password_env", &["mail"]),
    ("url", &["ntfy", "slack", "webhook", "ping"]),
    ("url_file", &["ntfy", "slack", "webhook", "ping"]),
    ("url_env", &["ntfy", "slack", "webhook", "ping"]),
    ("token_file", &["ntfy", "slack", "webhook"]),
    ("token_env", &["ntfy", "slack", "webhook"]),
    ("severity", &["mail", "ntfy", "slack", "webhook"]),
    ("digest", &["mail", "ntfy", "slack", "webhook"]),
    ("quiet", &["mail", "ntfy", "slack", "webhook"]),
];

/// Reads every `[notify.NAME]`.
pub(crate) fn read(sink: &Sink<'_>, tables: Vec<(String, Fields<'_, '_>)>) -> Vec<Notify> {
    let tables = tables.into_iter();
    let read = tables.filter_map(|(name, fields)| read_one(sink, name, fields));
    read.collect()
}

fn read_one(sink: &Sink<'_>, name: String, mut fields: Fields<'_, '_>) -> Option<Notify> {
    let is_named = report_name(sink, &name, &fields.span);
    let kind = read_kind(sink, &mut fields);
    let Some(kind) = kind else {
        // What else stands there cannot be judged; that it is known is enough.
        for (key, _) in SOME {
            fields.get(key);
        }
        fields.finish();
        return None;
    };
    for (key, kinds) in SOME {
        if !kinds.contains(&kind)
            && let Some(span) = fields.special(key)
        {
            let message = format!("`{key}` means nothing for a notifier of kind `{kind}`");
            sink.error(
                &span,
                message,
                format!("remove it; it is for {}", words(kinds)),
            );
        }
    }
    let channel = match kind {
        "mail" => read_mail(sink, &mut fields).map(Channel::Mail),
        _ => read_hook(sink, &mut fields, kind).map(|hook| match kind {
            "ntfy" => Channel::Ntfy(hook),
            "slack" => Channel::Slack(hook),
            "webhook" => Channel::Webhook(hook),
            _ => Channel::Ping(hook),
        }),
    };
    let is_told = kind != "ping";
    let severity = is_told.then(|| fields.parsed("severity", parse_severity));
    let digest = is_told.then(|| fields.parsed("digest", parse_digest));
    let quiet = is_told.then(|| fields.parsed("quiet", parse_quiet));
    fields.finish();
    is_named.then_some(Notify {
        name,
        channel: channel?,
        severity: severity.flatten().map_or("S2", |at| at.value),
        digest: digest.flatten().map(|at| at.value),
        quiet: quiet.flatten().map(|at| at.value),
    })
}

fn words(list: &[&str]) -> String {
    let words: Vec<_> = list.iter().map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

fn read_kind(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<&'static str> {
    if !fields.has("kind") {
        let message = format!("`{}` has no `kind`", fields.place);
        let remedy = format!("write `kind = \"mail\"`; there are {}", words(&KINDS));
        sink.error(&fields.span, message, remedy);
    }
    let At { value, span } = fields.string("kind")?;
    let kind = KINDS.into_iter().find(|kind| *kind == value);
    if kind.is_none() {
        let message = format!(
            "`{}` is not a kind of notifier",
            tree::escape(value.as_bytes())
        );
        let remedy = match nearest(&value, KINDS) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use one of {}", words(&KINDS)),
        };
        sink.error(&span, message, remedy);
    }
    kind
}

/// Says that a key is missing, with an example.
fn missing(sink: &Sink<'_>, fields: &Fields<'_, '_>, key: &str, example: &str) {
    if !fields.has(key) {
        let message = format!("`{}` has no `{key}`", fields.place);
        sink.error(&fields.span, message, format!("write `{key} = {example}`"));
    }
}

fn read_mail(sink: &Sink<'_>, fields: &mut Fields<'_, '_>) -> Option<MailSpec> {
    missing(sink, fields, "to", "\"you@example.org\"");
    missing(sink, fields, "from", "\"thrice@example.org\"");
    let to = fields.strings("to", true);
    if let Some(to) = to.as_ref().filter(|to| to.value.is_empty()) {
        sink.error(
            &to.span,
            "`to` is empty",
            "write `to = [\"you@example.org\"]`",
        );
    }
    let mut good = to.is_some();
    let mut all = Vec::new();
    for one in to.map(|to| to.value).unwrap_or_default() {
        match check_address(&one.value) {
            Ok(address) => all.push(address),
            Err(why) => {
                sink.push(sink.diagnostic(&one.span, why));
                good = false;
            }
        }
    }
    let from = fields.parsed("from", check_address);
    let has_smtp = fields.has("smtp");
    let url = fields.parsed_unseen("smtp", check_smtp);
    let login = read_login(sink, fields, has_smtp);
    let smtp = match has_smtp {
        true => Some(Smtp {
            url: url?.value,
            login: login?,
        }),
        false => login.map(|_| None)?,
    };
    (good && !all.is_empty()).then_some(MailSpec {
        to: all,
        from: from?.value,
        smtp,
    })
}

/// `user` and its password. `None`: an error has been reported.
fn read_login(
    sink: &Sink<'_>,
    fields: &mut Fields<'_, '_>,
    has_smtp: bool,
) -> Option<Option<(String, Secret)>> {
    let has_user = fields.has("user");
    let user = fields.parsed("user", |user| match user {
        "" => Err("`user` is empty".into()),
        // Where the password begins, for whoever sends it.
        user if user.contains(':') => Err("`user` must not have a `:` in it".into()),
        user => Ok(user.to_owned()),
    });
    let secret = read_secret(sink, fields, "password_file", "password_env")?;
    match (user, secret) {
        (None, None) if !has_user => Some(None),
        (Some(user), Some(secret)) if has_smtp => Some(Some((user.value, secret))),
        (Some(At { span, .. }), Some(_)) => {
            let remedy = "write `smtp = \"smtps://HOST\"` too, or remove it";
            sink.error(&span, "`user` means nothing without `smtp`", remedy);
            None
        }
        (Some(At { span, .. }), None) => {
            let remedy = "write `password_file = \"/etc/thrice/mail.password\"` too";
            sink.error(&span, "`user` has no password", remedy);
            None
        }
        (None, _) => {
            if !has_user {
                let message = format!("the password of `{}` has no `user`", fields.place);
                sink.error(&fields.span, message, "write `user = \"NAME\"` too");
            }
            None
        }
    }
}

/// What stands between the angle brackets of a mail: no list, no name, nothing that ends a line.
fn check_address(text: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || "<>,;:\"()[]\\".contains(c);
    let parts = text.rsplit_once('@');
    let good = parts.is_some_and(|(local, host)| !local.is_empty() && !host.is_empty());
    match good && text.is_ascii() && !text.starts_with('-') && !text.contains(bad) {
        true => Ok(text.into()),
        false => Err(format!(
            "`{}` is not an address; write it like `you@example.org`",
            tree::escape(shown_url(text).as_bytes())
        )),
    }
}

fn check_smtp(text: &str) -> Result<String, String> {
    let wrong = || {
        "this is not a mail server; write it like `smtp://mail.example.org:25` or \
         `smtps://mail.example.org:465`"
            .to_owned()
    };
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || "/?#\\\"".contains(c);
    if rest.contains('@') {
        return Err(
            "the user of a mail server does not stand in its URL, nor does the password; \
                    write `user = \"NAME\"` and `password_file`"
                .into(),
        );
    }
    match matches!(scheme, "smtp" | "smtps") && !rest.is_empty() && !rest.contains(odd) {
        true => Ok(text.into()),
        false => Err(wrong()),
    }
}

fn read_hook(sink: &Sink<'_>, fields: &mut Fields<'_, '_>, kind: &str) -> Option<Hook> {
    let example = match kind {
        "ntfy" => "\"https://ntfy.sh/TOPIC\"",
        "slack" => "\"https://hooks.slack.com/services/…\"",
        "ping" => "\"https://hc-ping.com/UUID\"",
        _ => "\"https://example.org/hook\"",
    };
    let has_url = fields.has("url");
    let url = fields.parsed_unseen("url", check_url);
    let has_secret = fields.has("url_file") || fields.has("url_env");
    let secret = read_secret(sink, fields, "url_file", "url_env");
    let token = match kind {
        "ping" => Some(None),
        _ => read_secret(sink, fields, "token_file", "token_env"),
    };
    if has_url && has_secret {
        let message = format!("`{}` has its URL twice", fields.place);
        sink.error(&fields.span, message, "keep one of the two");
        return None;
    }
    if !has_url && !has_secret {
        let message = format!("`{}` has no `url`", fields.place);
        let remedy = format!("write `url = {example}`, or `url_file` if it is a secret");
        sink.error(&fields.span, message, remedy);
    }
    let url = match url {
        Some(url) => HookUrl::Written(url.value),
        None => HookUrl::Secret(secret??),
    };
    Some(Hook { url, token: token? })
}

/// Not repeated when it is wrong: it may be a secret.
fn check_url(text: &str) -> Result<String, String> {
    let odd = |c: char| c.is_whitespace() || c.is_control();
    match text.split_once("://") {
        Some(("http" | "https", rest)) if !rest.is_empty() && !text.contains(odd) => {
            Ok(text.into())
        }
        _ => Err("this is not a URL; write it like `https://example.org/hook`".into()),
    }
}

fn parse_severity(text: &str) -> Result<&'static str, String> {
    let known = ["S1", "S2", "S3"];
    let found = known.into_iter().find(|known| *known == text);
    found.ok_or_else(|| {
        format!(
            "`{}` is not a severity; write `S1` (only data at risk), `S2` or `S3` (all)",
            tree::escape(text.as_bytes())
        )
    })
}

fn parse_digest(text: &str) -> Result<When, String> {
    let wrong = || {
        format!(
            "`{}` is no time for a digest; write it like `daily 08:00`, `Mon 08:00` or `monthly`",
            tree::escape(text.as_bytes())
        )
    };
    match parse_when(text) {
        Ok(When::After(_)) | Err(_) => Err(wrong()),
        Ok(when) => Ok(when),
    }
}

fn parse_quiet(text: &str) -> Result<Quiet, String> {
    let wrong = || {
        format!(
            "`{}` are no quiet hours; write them like `22:00-07:00`",
            tree::escape(text.as_bytes())
        )
    };
    let (from, until) = text.split_once('-').ok_or_else(wrong)?;
    let from = parse_time(from.trim()).ok_or_else(wrong)?;
    let until = parse_time(until.trim()).ok_or_else(wrong)?;
    match from == until {
        true => Err(wrong()),
        false => Ok(Quiet { from, until }),
    }
}
