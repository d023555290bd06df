//! Writes to a file through a mapping, with nothing of it open: `mapper FILE`, then one line on stdin
//! for each writing; after each it says `written`. The mapping ends with the process.

use std::io::{BufRead, Write};

fn main() -> anyhow::Result<()> {
    let path = std::env::args_os().nth(1).expect("mapper FILE");
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let len = usize::try_from(file.metadata()?.len())?;
    // SAFETY: the mapping is shared, of a file that nobody cuts off, and lives until the end.
    #[allow(unsafe_code)]
    let bytes = unsafe {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let start = mmap(
            std::ptr::null_mut(),
            len,
            access,
            MapFlags::SHARED,
            &file,
            0,
        )?;
        std::slice::from_raw_parts_mut(start.cast::<u8>(), len)
    };
    drop(file);
    let mut say = std::io::stdout();
    writeln!(say, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        bytes[..line.len()].copy_from_slice(line.as_bytes());
        writeln!(say, "written")?;
    }
    Ok(())
}
