//! Every notifier passes the suite, against receivers that speak what they claim to.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use blackbox::{Received, Running, Sink, SinkMood, World};
use observe::notify::conformance::{self, Arrived, Mood, Receiver};
use observe::notify::{Notifier, Retry, notifier};
use policy::{Channel, Hook, HookUrl, MailSpec, Secret, Smtp};
use serde_json::Value;

/// What nobody but the receiver may see.
const SECRET: &str = "hunter2 \"\\ %";
/// `\0me\0` and the secret, in base64.
const LOGIN: &str = "AG1lAGh1bnRlcjIgIlwgJQ==";

/// A sink, how a notifier is made for it, and how a person would read what has arrived.
struct Site<'a> {
    sink: Sink,
    make: &'a dyn Fn(&str) -> Box<dyn Notifier>,
    read: fn(&Received) -> Arrived,
    secret: &'a str,
}

impl Receiver for Site<'_> {
    fn notifier(&self) -> Box<dyn Notifier> {
        (self.make)(&self.sink.address())
    }

    fn be(&self, mood: Mood) {
        let mood = match mood {
            Mood::Takes => SinkMood::Takes,
            Mood::Refuses => SinkMood::Refuses,
            Mood::Hangs => SinkMood::Hangs,
            Mood::Gone => SinkMood::Gone,
        };
        self.sink.be(mood).expect("the sink obeys");
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.sink.take().iter().map(self.read).collect()
    }

    fn secret(&self) -> &str {
        self.secret
    }
}

fn pass(site: &Site<'_>) -> Result<()> {
    let failed = conformance::run(site).into_iter();
    let failed = failed.filter_map(|(name, ran)| Some(format!("{name}: {}", ran.err()?)));
    let failed: Vec<_> = failed.collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// A notifier of that kind for a receiver.
type Make = Box<dyn Fn(&str) -> Box<dyn Notifier>>;

fn hooked(channel: fn(Hook) -> Channel, token: Option<PathBuf>) -> Make {
    Box::new(move |address| {
        let hook = Hook {
            url: HookUrl::Written(format!("http://{address}/secret-path?a=b")),
            token: token.clone().map(Secret::File),
        };
        notifier(&channel(hook)).expect("it takes messages")
    })
}

fn mail(login: Option<PathBuf>) -> Make {
    Box::new(move |address| {
        let login = login
            .clone()
            .map(|file| ("me".to_owned(), Secret::File(file)));
        let spec = MailSpec {
            to: vec!["a@example.org".into(), "b@example.org".into()],
            from: "thrice@example.org".into(),
            smtp: Some(Smtp {
                url: format!("smtp://{address}"),
                login,
            }),
        };
        notifier(&Channel::Mail(spec)).expect("it takes messages")
    })
}

fn header(received: &Received, name: &str) -> String {
    received.header(name).expect("a header")
}

fn read_mail(received: &Received) -> Arrived {
    assert!(
        received.head.contains("MAIL FROM:<thrice@example.org>"),
        "{}",
        received.head
    );
    for to in ["a", "b"] {
        let to = format!("RCPT TO:<{to}@example.org>");
        assert!(received.head.contains(&to), "{}", received.head);
    }
    let short = |line: &str| line.len() <= 78 && line.is_ascii();
    assert!(received.body.lines().all(short), "{}", received.body);
    assert!(received.header("Bcc").is_none());
    Arrived {
        title: header(received, "Subject"),
        text: received.mail_text(),
    }
}

fn read_ntfy(received: &Received) -> Arrived {
    assert_eq!(header(received, "Priority"), "5");
    Arrived {
        title: header(received, "Title"),
        text: received.body.clone(),
    }
}

fn read_slack(received: &Received) -> Arrived {
    assert!(!received.body.contains("<!channel>"), "{}", received.body);
    let body: Value = serde_json::from_str(&received.body).expect("JSON");
    let text = body["text"].as_str().expect("a text");
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    let (title, text) = text.split_once("\n\n").expect("a title");
    let (title, text) = (title.to_owned(), text.to_owned());
    Arrived { title, text }
}

fn read_webhook(received: &Received) -> Arrived {
    assert_eq!(received.path(), "/secret-path?a=b");
    assert_eq!(header(received, "Content-Type"), "application/json");
    let body: Value = serde_json::from_str(&received.body).expect("JSON");
    let item = &body["items"][0];
    assert_eq!(
        (&body["event"], &item["severity"]),
        (&"change".into(), &"S1".into())
    );
    let text = |key: &str| body[key].as_str().expect("a text").to_owned();
    Arrived {
        title: text("title"),
        text: text("text"),
    }
}

#[test]
fn mail_passes_the_suite() -> Result<()> {
    pass(&Site {
        sink: Sink::smtp()?,
        make: &*mail(None),
        read: read_mail,
        secret: "a@example.org",
    })
}

#[test]
fn mail_with_a_password_passes_the_suite() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("password");
    std::fs::write(&file, format!("{SECRET}\n"))?;
    pass(&Site {
        sink: Sink::smtp()?,
        make: &*mail(Some(file)),
        read: |received| {
            assert!(received.head.contains(LOGIN), "{}", received.head);
            read_mail(received)
        },
        secret: SECRET,
    })
}

#[test]
fn ntfy_passes_the_suite() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("token");
    std::fs::write(&file, SECRET)?;
    pass(&Site {
        sink: Sink::http()?,
        make: &*hooked(Channel::Ntfy, Some(file)),
        read: |received| {
            assert_eq!(
                header(received, "Authorization"),
                format!("Bearer {SECRET}")
            );
            read_ntfy(received)
        },
        secret: SECRET,
    })
}

#[test]
fn slack_passes_the_suite() -> Result<()> {
    pass(&Site {
        sink: Sink::http()?,
        make: &*hooked(Channel::Slack, None),
        read: read_slack,
        secret: "secret-path",
    })
}

#[test]
fn a_webhook_passes_the_suite_and_so_does_what_is_laid_around_it() -> Result<()> {
    let plain = hooked(Channel::Webhook, None);
    let again = |address: &str| -> Box<dyn Notifier> {
        let inner = plain(address);
        const WAITS: &[Duration] = &[Duration::from_millis(1), Duration::from_millis(1)];
        Box::new(Retry {
            inner,
            waits: WAITS,
        })
    };
    for make in [&*plain, &again] {
        pass(&Site {
            sink: Sink::http()?,
            make,
            read: read_webhook,
            secret: "secret-path",
        })?;
    }
    Ok(())
}

/// A password does not cross the network in the clear: the sink knows no TLS.
#[test]
fn a_password_goes_only_where_it_is_safe() -> Result<()> {
    let Some(address) = outward() else {
        return blackbox::skip("this machine has no address but loopback");
    };
    let world = World::one_store()?;
    std::fs::write(world.path("password"), SECRET)?;
    let listener = std::net::TcpListener::bind((address, 0))?;
    let port = listener.local_addr()?.port();
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{text}[notify.me]\nkind = \"mail\"\nto = \"a@b.c\"\nfrom = \"a@b.c\"\nuser = \"me\"\n\
         smtp = \"smtp://{address}:{port}\"\npassword_file = \"{}\"\n",
        world.path("password").display()
    ))?;
    let server = std::thread::spawn(move || -> Result<String> {
        use std::io::{BufRead, BufReader, Write};
        let mut said = String::new();
        // One for each try.
        for _ in 0..3 {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(b"220 sink ESMTP\r\n")?;
            for line in BufReader::new(stream.try_clone()?).lines() {
                let line = line?;
                let answer: &[u8] = match line.starts_with("EHLO") {
                    true => b"250-sink\r\n250 AUTH PLAIN\r\n",
                    false => b"502 no\r\n",
                };
                said.push_str(&line);
                stream.write_all(answer)?;
            }
        }
        Ok(said)
    });
    let outcome = world.run(&["notify", "--test", "me"])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    let said = server.join().expect("the server lives")?;
    ensure!(said.contains("EHLO") && !said.contains("AUTH"), "{said}");
    Ok(())
}

/// An address of this machine that is not loopback; nothing is sent.
fn outward() -> Option<std::net::Ipv4Addr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}

#[test]
fn without_a_server_the_machines_own_sendmail_takes_it() -> Result<()> {
    let world = World::one_store()?;
    let (bin, got) = (world.path("bin"), world.path("mail"));
    std::fs::create_dir(&bin)?;
    let script = format!("#!/bin/sh\n{{ echo \"$@\"; cat; }} >'{}'\n", got.display());
    std::fs::write(bin.join("sendmail"), script)?;
    std::fs::set_permissions(bin.join("sendmail"), PermissionsExt::from_mode(0o755))?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{text}[notify.me]\nkind = \"mail\"\nto = \"root@box\"\nfrom = \"thrice@box\"\n"
    ))?;
    let mut command: Command = world.command(&["notify", "--test", "me"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    let ended = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(ended.success());
    let mail = std::fs::read_to_string(&got)?;
    let (words, mail) = mail.split_once('\n').context("it was called")?;
    ensure!(words == "-i -f thrice@box -- root@box", "{words}");
    ensure!(
        !mail.contains('\r') && mail.contains("\nSubject: box: a test\n"),
        "{mail}"
    );
    Ok(())
}

/// Lets TLS end before a sink, as long as it lives.
struct Tls(Child);

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Over a real TLS connection the mail arrives, password and all; where the server's certificate is
/// not known, nothing is said to it.
#[test]
fn a_mail_goes_over_tls_to_whom_its_certificate_proves() -> Result<()> {
    let tools = ["socat", "openssl"];
    if let Some(missing) = tools.iter().find(|tool| blackbox::find(tool).is_none()) {
        return blackbox::skip(format!("{missing} is not installed"));
    }
    let world = World::one_store()?;
    let sink = Sink::smtp()?;
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .arg("-keyout")
        .arg(world.path("tls.key"))
        .arg("-out")
        .arg(world.path("tls.pem"))
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let listen = format!(
        "OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,verify=0,cert={},key={}",
        world.path("tls.pem").display(),
        world.path("tls.key").display()
    );
    let to = format!("TCP:{}", sink.address());
    let log = std::fs::File::create(world.path("socat.log"))?;
    let socat = Command::new("socat")
        .args([&listen, &to])
        .stderr(log)
        .spawn()?;
    let _tls = Tls(socat);
    let patience = Instant::now() + Duration::from_secs(30);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < patience, "socat does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::write(world.path("password"), SECRET)?;
    let text = std::fs::read_to_string(world.path("thrice.toml"))?;
    world.configure(&format!(
        "{text}[notify.me]\nkind = \"mail\"\nto = \"a@b.c\"\nfrom = \"t@b.c\"\nuser = \"me\"\n\
         smtp = \"smtps://localhost:{port}\"\npassword_file = \"{}\"\n",
        world.path("password").display()
    ))?;
    let outcome = world.run(&["notify", "--test", "me"])?;
    ensure!(outcome.code == Some(1), "{outcome}");
    ensure!(outcome.stderr.contains("certificate"), "{outcome}");
    ensure!(sink.take().is_empty(), "an unknown server was told");

    let mut command = world.command(&["notify", "--test", "me"]);
    command.env("CURL_CA_BUNDLE", world.path("tls.pem"));
    let outcome = Running::spawn(&mut command)?.wait()?;
    ensure!(outcome.code == Some(0), "{outcome}");
    let got = sink.wait()?;
    ensure!(got.len() == 1 && got[0].head.contains(LOGIN), "{got:?}");
    ensure!(
        got[0].header("Subject") == Some("box: a test".into()),
        "{got:?}"
    );
    Ok(())
}
