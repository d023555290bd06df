//! Keeps the machine up during a run: a program that holds systemd's inhibitor for as long as its
//! standard input is open, and so no longer than this process lives, however that ends.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::printer::Printer;

/// Says that the inhibitor is held, and waits for the end.
const HOLD: &str = "echo held; exec cat >/dev/null";

/// While there is one the machine neither shuts down nor goes to sleep without being forced.
pub struct Inhibitor {
    held: Option<Child>,
}

impl Inhibitor {
    /// Takes it. Where there is none to be had that is said, and the work goes on.
    pub fn hold(printer: &Printer) -> Self {
        match take() {
            Ok(child) => Self { held: Some(child) },
            Err(why) => {
                printer.hint(&format!(
                    "this machine may shut down during the run (systemd-inhibit: {why})"
                ));
                Self { held: None }
            }
        }
    }
}

impl Drop for Inhibitor {
    fn drop(&mut self) {
        if let Some(mut child) = self.held.take() {
            drop(child.stdin.take());
            // Whatever it says: the inhibitor went with its standard input.
            let _ = child.wait();
        }
    }
}

fn take() -> Result<Child, String> {
    let mut command = Command::new("systemd-inhibit");
    command
        .args(["--what=shutdown:sleep", "--mode=block", "--who=Thrice"])
        .args(["--why=A backup is being made", "sh", "-c", HOLD])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C at a terminal ends the run first.
        .process_group(0);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut first = [0];
    let said = child.stdout.as_mut().map(|out| out.read(&mut first));
    if let Some(Ok(1)) = said {
        return Ok(child);
    }
    drop(child.stdin.take());
    let ended = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&ended.stderr);
    Err(match said.trim() {
        "" => ended.status.to_string(),
        said => said.to_owned(),
    })
}
