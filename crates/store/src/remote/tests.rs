use std::ffi::OsStr;
use std::io::pipe;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::*;
use crate::conformance::{self, Fixture};
use crate::{AgentOptions, Disk, DiskOptions, Hello};

/// A disk behind an agent on a thread of this process.
fn far(path: &Path) -> Remote {
    struct There(std::path::PathBuf);

    impl Transport for There {
        fn name(&self) -> String {
            "there".into()
        }

        fn open(&self) -> Result<Link> {
            let (host_in, agent_out) = pipe().unwrap();
            let (agent_in, host_out) = pipe().unwrap();
            let path = self.0.clone();
            std::thread::spawn(move || {
                let open = |hello: &Hello| {
                    let options = DiskOptions {
                        host: hello.host.clone(),
                        create: hello.create,
                        ..DiskOptions::default()
                    };
                    Ok(Box::new(Disk::open(&path, options)?) as Box<dyn Store>)
                };
                crate::serve(agent_in, agent_out, &open, &AgentOptions::default())
            });
            Ok(Link::pipes(host_in.into(), host_out.into()))
        }
    }

    let options = RemoteOptions {
        create: true,
        ..RemoteOptions::new("pve")
    };
    Remote::connect(&There(path.to_owned()), &options).unwrap()
}

#[test]
fn a_far_store_is_a_store() {
    conformance::run(&|| {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let there = root.clone();
        Fixture {
            open: Box::new(move || Box::new(far(&there))),
            root,
            dir,
        }
    });
}

#[test]
fn r06_an_agent_says_what_lies_in_its_store_and_is_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = far(&root);
    assert_eq!(store.unowned().unwrap(), Some(Unowned::default()));
    drop(store);
    let odd = b"a\xff\n";
    std::fs::write(root.join(OsStr::from_bytes(odd)), "").unwrap();
    for number in 0..300 {
        std::fs::create_dir(root.join(format!("b{number:03}"))).unwrap();
    }
    let told = far(&root).unowned().unwrap().unwrap();
    assert_eq!((told.count, told.names.len()), (301, 256));
    assert_eq!(
        (&*told.names[0], &*told.names[255]),
        (&odd[..], &b"b254"[..])
    );
    // What cannot be listed is told as that, and the store serves all the same.
    std::fs::write(root.join(".thrice/log"), "no folder").unwrap();
    let store = far(&root);
    assert!(store.unowned().is_err());
    store.info().unwrap();
}

/// An agent of an older release is sent everything.
#[test]
fn an_older_agent_is_not_asked_to_take_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut remote = far(&dir.path().join("store"));
    assert!(remote.begin("d", 1).unwrap().is_better_from_store());
    remote.version = wire::FROM_STORE - 1;
    let session = remote.begin("d", 1).unwrap();
    assert!(!session.is_better_from_store());
    let job = StageJob {
        path: conformance::path("a"),
        node: conformance::file_node(b"a"),
        resume_key: None,
    };
    let source = Source {
        dataset: "d".into(),
        place: Place::Current(conformance::path("b")),
    };
    let refused = session.stage_copy(&job, &source, &AtomicBool::new(false));
    assert!(matches!(refused, Err(Error::Missing(_))), "{refused:?}");
}

#[test]
fn an_old_agent_is_sent_nothing_that_it_does_not_know() {
    struct Old(Sender<Vec<String>>);

    impl Transport for Old {
        fn name(&self) -> String {
            "there".into()
        }

        fn open(&self) -> Result<Link> {
            let (host_in, mut agent_out) = pipe().unwrap();
            let (agent_in, host_out) = pipe().unwrap();
            let tell = self.0.clone();
            std::thread::spawn(move || {
                let mut inbox = Inbox::new(agent_in, Duration::from_secs(20));
                inbox.expect_magic().unwrap();
                let Incoming::Hello(hello) = inbox.next().unwrap() else {
                    panic!("no hello");
                };
                let known = u16::from_le_bytes([hello[0], hello[1]]);
                assert_eq!(known, 1, "the first version is still spoken");
                let info = StoreInfo {
                    id: "id".into(),
                    owner: "pve".into(),
                    format: 1,
                    space: crate::Space {
                        size_bytes: 0,
                        available_bytes: 0,
                        inodes: 0,
                        available_inodes: 0,
                    },
                    now: String::new(),
                    append_only: false,
                };
                let welcome: Welcome = Ok((1, info));
                let mut bytes = wire::MAGIC.to_vec();
                let mut payload = Vec::new();
                wire::encode(&mut payload, &welcome).unwrap();
                wire::put_raw(&mut bytes, Kind::Welcome, &[&payload]);
                std::io::Write::write_all(&mut agent_out, &bytes).unwrap();
                let begun = Begun {
                    sealed: None,
                    open_records: 0,
                    unlogged: false,
                };
                let answer = ToHost::Answer {
                    call: 0,
                    answer: Ok(Answer::Begun(begun)),
                };
                let mut bytes = Vec::new();
                wire::put_message(&mut bytes, &answer, &[]).unwrap();
                let mut heard = Vec::new();
                while let Incoming::Message(message) = inbox.next().unwrap() {
                    let (message, _) = wire::decode::<ToAgent>(message).unwrap();
                    // Nobody waits for an answer before there is a question.
                    if matches!(message, ToAgent::Begin { .. }) {
                        std::io::Write::write_all(&mut agent_out, &bytes).unwrap();
                    }
                    heard.push(format!("{message:?}"));
                }
                tell.send(heard).unwrap();
            });
            Ok(Link::pipes(host_in.into(), host_out.into()))
        }
    }

    let (tell, heard) = bounded(1);
    let remote = Remote::connect(&Old(tell), &RemoteOptions::new("pve")).unwrap();
    assert_eq!(remote.unowned().unwrap(), None);
    let session = remote.begin("d", 1).unwrap();
    assert!(!session.prefers_deltas());
    let node = conformance::file_node(b"old");
    let base = Want {
        place: Place::Current(conformance::path("a")),
        size: 3,
        hash: node.hash.unwrap(),
        extents: None,
    };
    let (signature, _) = Signature::of(&mut conformance::Bytes::new(b"old")).unwrap();
    let mut content = conformance::Bytes::new(b"new");
    let mut delta = tree::Matcher::new(&mut content, signature, 3, None).unwrap();
    let job = StageJob {
        path: conformance::path("a"),
        node,
        resume_key: None,
    };
    assert!(session.signature(&base).is_err());
    assert!(session.stage_delta(&job, &base, &mut delta).is_err());
    drop(session);
    drop(remote);
    let heard = heard.recv_timeout(Duration::from_secs(20)).unwrap();
    assert_eq!(heard.len(), 2, "{heard:?}");
    assert!(
        heard[0].starts_with("Begin") && heard[1] == "End",
        "{heard:?}"
    );
}
