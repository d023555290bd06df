//! `cutter MOUNT MARK N PROGRAM ARG…`: runs a program and cuts the power at its n-th system call
//! that changes a disk.
//!
//! At the entry of that call, counted over all threads of the process (not over processes that
//! it starts), the file system at MOUNT is shut down without writing its log, the program is
//! killed, and MARK is made. Between two such calls nothing changes on a disk, so cutting at
//! every one of them is cutting everywhere.

use std::error::Error;
use std::ffi::{OsStr, OsString, c_int, c_long, c_void};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions};

unsafe extern "C" {
    fn ptrace(request: c_int, pid: c_int, addr: *mut c_void, data: *mut c_void) -> c_long;
}

const TRACE_ME: c_int = 0;
const SET_OPTIONS: c_int = 0x4200;
const CONTINUE_TO_CALL: c_int = 24;
const GET_CALL: c_int = 0x420e;
/// Marks calls, follows threads and `execve`, and kills the program when we die.
const OPTIONS: usize = 0x01 | 0x08 | 0x10 | 0x10_0000;
/// `__WALL`: threads too.
const ALL_CHILDREN: u32 = 0x4000_0000;
/// Exit code after a cut.
const CUT: u8 = 99;

/// `struct ptrace_syscall_info`, as far as it is about the entry of a call.
#[repr(C)]
#[derive(Default)]
struct Call {
    /// 1: at its entry.
    op: u8,
    padding: [u8; 3],
    arch: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    number: u64,
    arguments: [u64; 6],
}

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&words) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("cutter: {error}");
            125.into()
        }
    }
}

fn run(words: &[OsString]) -> Result<u8, Box<dyn Error>> {
    let [mount, mark, at, program, arguments @ ..] = words else {
        return Err("usage: cutter MOUNT MARK N PROGRAM ARG…".into());
    };
    let at: u64 = at.to_string_lossy().parse()?;
    let mount = File::open(mount)?;
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: one system call without memory, allowed between fork and exec.
    unsafe { command.pre_exec(|| trace(TRACE_ME, 0, 0, std::ptr::null_mut()).map(drop)) };
    let mut child = command.spawn()?;
    let own = Pid::from_child(&child).as_raw_nonzero().get();
    let mut passed = 0;
    let mut set = false;
    loop {
        let wait = WaitOptions::from_bits_retain(ALL_CHILDREN);
        let Some((pid, status)) = rustix::process::waitpid(None, wait)? else {
            continue;
        };
        let (pid, raw) = (pid.as_raw_nonzero().get(), status.as_raw());
        if raw & 0xff != 0x7f {
            match (pid == own, raw & 0x7f) {
                (false, _) => continue,
                (true, 0) => return Ok(u8::try_from(raw >> 8 & 0xff)?),
                (true, signal) => return Ok(u8::try_from(128 + signal)?),
            }
        }
        if !set {
            trace(
                SET_OPTIONS,
                pid,
                0,
                std::ptr::without_provenance_mut(OPTIONS),
            )?;
            set = true;
        }
        let signal = raw >> 8 & 0xff;
        if signal == 0x85 && changes_a_disk(pid)? {
            passed += 1;
            if passed == at {
                return cut(&mut child, &mount, mark);
            }
        }
        // Stops that tracing makes are not told to the program: calls, events, new threads.
        let told = match signal {
            0x85 | 5 | 19 => 0,
            signal => usize::try_from(signal)?,
        };
        // A thread may be gone by now, with the rest of its process.
        let _ = trace(
            CONTINUE_TO_CALL,
            pid,
            0,
            std::ptr::without_provenance_mut(told),
        );
    }
}

fn trace(request: c_int, pid: c_int, addr: usize, data: *mut c_void) -> std::io::Result<c_long> {
    // SAFETY: `data` is an integer, or points to a `Call` of `addr` bytes for `GET_CALL`.
    match unsafe { ptrace(request, pid, std::ptr::without_provenance_mut(addr), data) } {
        -1 => Err(std::io::Error::last_os_error()),
        done => Ok(done),
    }
}

fn changes_a_disk(pid: c_int) -> std::io::Result<bool> {
    let mut call = Call::default();
    let data = (&raw mut call).cast();
    match trace(GET_CALL, pid, size_of::<Call>(), data) {
        // Killed meanwhile.
        Err(error) if error.raw_os_error() == Some(3) => return Ok(false),
        done => done?,
    };
    let creates = |flags: u64| flags & 0o100 != 0;
    Ok(call.op == 1
        && match call.number {
            numbers::OPENAT => creates(call.arguments[2]),
            number => numbers::CHANGES.contains(&number),
        })
}

#[cfg(target_arch = "x86_64")]
mod numbers {
    pub const OPENAT: u64 = 257;
    /// write, pwrite64, writev, pwritev, ftruncate, fsync, fdatasync, syncfs, rename*, link*,
    /// symlink*, unlink*, rmdir, mkdir*, mknodat, fchmod, fchmodat, fchown, fchownat,
    /// utimensat, fsetxattr, copy_file_range, fallocate.
    pub const CHANGES: &[u64] = &[
        1, 18, 20, 296, 77, 74, 75, 306, 82, 264, 316, 86, 265, 88, 266, 87, 263, 84, 83, 258, 259,
        91, 268, 93, 260, 280, 190, 326, 285,
    ];
}

#[cfg(target_arch = "aarch64")]
mod numbers {
    pub const OPENAT: u64 = 56;
    /// The same in this machine's numbers.
    pub const CHANGES: &[u64] = &[
        64, 68, 66, 70, 46, 82, 83, 267, 38, 276, 37, 36, 35, 34, 33, 52, 53, 55, 54, 88, 7, 285,
        47,
    ];
}

/// The power is gone: what was not durable is lost, and the program has no time to notice.
fn cut(child: &mut Child, mount: &File, mark: &OsStr) -> Result<u8, Box<dyn Error>> {
    /// `FS_IOC_SHUTDOWN` with `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`.
    const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
    // Before anyone can notice.
    File::create(mark)?;
    // SAFETY: this request reads one u32.
    unsafe { rustix::ioctl::ioctl(mount, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(2))? };
    rustix::process::kill_process(Pid::from_child(child), Signal::KILL)?;
    // Its threads end first, each with a word to us.
    while rustix::process::waitpid(None, WaitOptions::from_bits_retain(ALL_CHILDREN)).is_ok() {}
    Ok(CUT)
}
