use std::io::pipe;
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
