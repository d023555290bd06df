//! Passphrases: from a file, or asked for on the terminal without showing them. Never an argument.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::exit::Usage;

/// A file with more in its first line holds no passphrase.
const BYTES_MAX: usize = 4096;
/// What a person thinks of is guessed sooner than what is shorter than this, in characters.
const CHARS_MIN: usize = 12;

/// The passphrase of a file, or what is answered to `prompt`.
pub fn get(file: Option<&Path>, prompt: &str) -> Result<Vec<u8>> {
    match file {
        Some(file) => from_file(file),
        None => ask(&mut terminal()?, prompt),
    }
}

/// The same for one that something is to be encrypted with: it is asked for twice.
pub fn get_new(file: Option<&Path>) -> Result<Vec<u8>> {
    let passphrase = match file {
        Some(file) => from_file(file)?,
        None => {
            let mut terminal = terminal()?;
            let first = ask(&mut terminal, "A passphrase for the kit")?;
            if ask(&mut terminal, "The same once more")? != first {
                return Err(Usage("these are two passphrases; nothing was written".into()).into());
            }
            first
        }
    };
    if String::from_utf8_lossy(&passphrase).chars().count() < CHARS_MIN {
        return Err(Usage(format!(
            "the passphrase has fewer than {CHARS_MIN} characters: the kit holds every key there \
             is; `--generate` makes a good one"
        ))
        .into());
    }
    Ok(passphrase)
}

/// The first line.
fn from_file(file: &Path) -> Result<Vec<u8>> {
    let shown = tree::escape(file.as_os_str().as_encoded_bytes());
    let what = || format!("the passphrase file `{shown}`");
    let mut bytes = Vec::new();
    let opened = File::open(file).with_context(what)?;
    let read = opened.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.with_context(what)?;
    let line = bytes
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > BYTES_MAX {
        return Err(Usage(format!("{} has no passphrase in its first line", what())).into());
    }
    Ok(line.to_vec())
}

fn terminal() -> Result<File> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    terminal.map_err(|_| {
        let remedy = "there is no terminal to ask for the passphrase on: name a file that holds it \
                      with --passphrase-file";
        Usage(remedy.into()).into()
    })
}

/// A terminal that shows nothing and leaves every key to us, Ctrl-C too, until it is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> Result<Self> {
        let before = tcgetattr(terminal).context("the terminal")?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(terminal, OptionalActions::Flush, &silent).context("the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

fn ask(terminal: &mut File, prompt: &str) -> Result<Vec<u8>> {
    let what = "asking for the passphrase";
    let mut reader = terminal.try_clone().context(what)?;
    let silent_on = terminal.try_clone().context(what)?;
    let silent = Silent::new(&silent_on)?;
    write!(terminal, "{prompt}: ").context(what)?;
    let answer = line(&mut reader);
    drop(silent);
    writeln!(terminal).context(what)?;
    match answer.context(what)? {
        Some(answer) if answer.is_empty() => Err(Usage("no passphrase was given".into()).into()),
        Some(answer) => Ok(answer),
        None => Err(Usage("no passphrase was given: interrupted".into()).into()),
    }
}

/// What is typed up to the end of the line; `None`: whoever types has stopped it.
fn line(reader: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const BACKSPACE: [u8; 2] = [8, 127];
    let mut typed = Vec::new();
    let mut key = [0];
    while typed.len() < BYTES_MAX && reader.read(&mut key)? > 0 {
        match key[0] {
            b'\n' | b'\r' => return Ok(Some(typed)),
            INTERRUPT | END => return Ok(None),
            key if BACKSPACE.contains(&key) => {
                // With all bytes of a character.
                while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            key => typed.push(key),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_was_typed_and_not_taken_back() {
        for (keys, line_is) in [
            (&b"secret\rmore"[..], Some(&b"secret"[..])),
            (b"sec\x7f\x7f\x7f\x7fok\n", Some(b"ok")),
            ("aü\u{7f}b\n".as_bytes(), Some(b"ab")),
            (b"half\x03", None),
            (b"cut off", None),
        ] {
            let typed = line(&mut &keys[..]).unwrap();
            assert_eq!(typed.as_deref(), line_is);
        }
    }
}
