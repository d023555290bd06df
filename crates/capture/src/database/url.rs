//! Where a server is, as its engine's tools write it.

use crate::error::{Error, Result};

/// A server's address. Everything but the user is as written, percent signs and all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    pub user: Option<String>,
    /// `host`, `host:port`; several with commas; or nothing.
    pub hosts: String,
    /// Without the slash before it.
    pub path: String,
    pub query: Vec<(String, String)>,
}

impl Url {
    /// Reads an address with one of these schemes. Errors: it is none, or has a password in it,
    /// which would be seen by everybody who lists processes.
    pub fn parse(text: &str, schemes: &[&str]) -> Result<Self> {
        let malformed = || Error::Refused {
            // Not the text: it may hold a password.
            why: "the address of a server is not understood".into(),
            remedy: format!("write it as `{}://user@host:port/name`", schemes[0]),
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(malformed)?;
        if !schemes.contains(&scheme) {
            return Err(malformed());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, authority),
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let query: Vec<_> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let has_password = user.is_some_and(|user| user.contains(':'))
            || query.iter().any(|(key, _)| key == "password");
        if has_password {
            return Err(Error::Refused {
                why: "there is a password in the address of a server".into(),
                remedy: "take it out and name its place with `password_file` or `password_env`"
                    .into(),
            });
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            user: user.filter(|user| !user.is_empty()).map(decoded),
            hosts: hosts.to_owned(),
            path: path.to_owned(),
            query,
        })
    }

    /// The host and the port of an address of one server; either may be left out.
    pub fn host(&self) -> (Option<&str>, Option<&str>) {
        let after_address = self.hosts.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match self.hosts[after_address..].rfind(':') {
            Some(at) => {
                let at = after_address + at;
                (&self.hosts[..at], Some(&self.hosts[at + 1..]))
            }
            None => (&*self.hosts, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let some = |text: &&str| !text.is_empty();
        (Some(host).filter(some), port.filter(some))
    }

    /// A parameter, decoded.
    pub fn param(&self, key: &str) -> Option<String> {
        let found = self.query.iter().find(|(known, _)| known == key);
        found.map(|(_, value)| decoded(value))
    }

    /// What the path names, decoded.
    pub fn name(&self) -> Option<String> {
        Some(decoded(&self.path)).filter(|name| !name.is_empty())
    }

    /// The whole of it with another path, whose bytes are encoded here.
    pub fn with_path(&self, path: &[u8]) -> String {
        let user = self
            .user
            .as_ref()
            .map(|user| encoded(user.as_bytes()) + "@");
        let mut text = format!(
            "{}://{}{}/{}",
            self.scheme,
            user.unwrap_or_default(),
            self.hosts,
            encoded(path)
        );
        let pairs = self
            .query
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let query = pairs.collect::<Vec<_>>().join("&");
        if !query.is_empty() {
            text.push('?');
            text.push_str(&query);
        }
        text
    }
}

/// With every byte that could mean something as `%XX`.
fn encoded(bytes: &[u8]) -> String {
    let one = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(*byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    bytes.iter().map(one).collect()
}

/// With every `%XX` as its byte.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (first, _) => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_and_its_parts() {
        let schemes = ["postgresql"];
        let url = Url::parse(
            "postgresql://a%20b@[::1]:5433/x?host=/run/pg&a=%2F",
            &schemes,
        );
        let url = url.unwrap();
        assert_eq!(url.user.as_deref(), Some("a b"));
        assert_eq!(url.host(), (Some("::1"), Some("5433")));
        assert_eq!(url.name().as_deref(), Some("x"));
        assert_eq!(url.param("a").as_deref(), Some("/"));
        let other = "postgresql://a%20b@[::1]:5433/y%27%FF%2F?host=/run/pg&a=%2F";
        assert_eq!(url.with_path(b"y'\xff/"), other);
        let url = Url::parse("postgresql:///accounts", &schemes).unwrap();
        assert_eq!((url.user.as_deref(), url.host()), (None, (None, None)));
        let url = Url::parse("postgresql://db", &schemes).unwrap();
        assert_eq!((url.host(), url.name()), ((Some("db"), None), None));
    }

    #[test]
    fn a_password_in_it_is_refused_and_not_repeated() {
        for text in [
            "postgresql://me:hunter2@db/x",
            "postgresql://db/x?password=hunter2",
            "other://me:hunter2@db",
            "hunter2",
        ] {
            let error = Url::parse(text, &["postgresql"]).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = Url::parse("postgresql://me:hunter2@db/x", &["postgresql"]).unwrap_err();
        assert!(error.to_string().contains("password_file"), "{error}");
    }
}
