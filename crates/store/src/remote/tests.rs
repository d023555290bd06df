use std::io::pipe;
use std::path::Path;

use super::*;
use crate::conformance::{self, Fixture};
use crate::{AgentOptions, Disk, DiskOptions, Hello};

/// A disk behind an agent on a thread of this process.
fn far(path: &Path) -> Box<dyn Store> {
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
    Box::new(Remote::connect(&There(path.to_owned()), &options).unwrap())
}

#[test]
fn a_far_store_is_a_store() {
    conformance::run(&|| {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("store");
        let there = root.clone();
        Fixture {
            open: Box::new(move || far(&there)),
            root,
            dir,
        }
    });
}
