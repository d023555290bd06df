//! `thrice agent`: the far side.

use anyhow::Result;
use store::{AgentOptions, Disk, DiskOptions, Hello, Store};

use crate::args::AgentArgs;
use crate::exit;

/// Serves one connection on standard input and output.
pub fn agent(args: &AgentArgs) -> Result<u8> {
    let open = |hello: &Hello| -> store::Result<Box<dyn Store>> {
        let options = DiskOptions {
            host: hello.host.clone(),
            create: hello.create,
            expect_id: hello.expect_id.clone(),
            require_mount: hello.require_mount,
            append_only: args.append_only,
            read_only: hello.read_only,
        };
        Ok(Box::new(Disk::open(&args.root, options)?))
    };
    let options = AgentOptions {
        append_only: args.append_only,
        ..AgentOptions::default()
    };
    store::serve(std::io::stdin(), std::io::stdout(), &open, &options)?;
    Ok(exit::OK)
}
