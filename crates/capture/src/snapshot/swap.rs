//! Going back to a snapshot by swapping it for the live volume: a plan that can be shown, and its
//! execution, which goes back when a step fails.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// The caller stops whatever uses the volume, and sees that it has let go of it.
    Stop,
    /// The caller starts it again.
    Start,
    /// An `lvm` command.
    Lvm {
        words: Vec<String>,
        /// For people.
        why: &'static str,
    },
    /// A change among subvolumes.
    Subvolume { does: Turn, of: Box<Subvolumes> },
}

/// What is done when one subvolume takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A writable one is made of the snapshot.
    Make,
    /// It takes the place of the live one, which is put aside.
    Place,
    /// The one that was put aside takes its place again.
    Back,
    /// The one that was made goes.
    Remove,
}

/// The subvolumes of a swap; paths are from the top of their file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subvolumes {
    /// The place of the live one, and its id.
    pub live: PathBuf,
    pub live_uuid: String,
    /// What is gone back to.
    pub source: PathBuf,
    pub source_uuid: String,
    /// Where what was made of it lies before, and what was live after.
    pub new: PathBuf,
    pub old: PathBuf,
}

impl Subvolumes {
    fn shown(&self, does: Turn, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |path: &Path| tree::escape(path.as_os_str().as_bytes()).into_owned();
        let (live, new, old) = (shown(&self.live), shown(&self.new), shown(&self.old));
        match does {
            Turn::Make => write!(
                f,
                "make a writable subvolume `{new}` of `{}`",
                shown(&self.source)
            ),
            Turn::Place => write!(
                f,
                "put it in the place of the subvolume `{live}`, which becomes `{old}`"
            ),
            Turn::Back => write!(f, "put `{old}` back in the place of `{live}`"),
            Turn::Remove => write!(f, "remove the subvolume `{new}`"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stop => f.write_str("stop the workload"),
            Self::Start => f.write_str("start the workload"),
            Self::Subvolume { does, of } => of.shown(*does, f),
            Self::Lvm { words, why } => {
                write!(f, "{why}: lvm")?;
                // Tags are many, and `why` says what they are for.
                let mut words = words.iter();
                while let Some(word) = words.next() {
                    match word.as_str() {
                        "--addtag" | "--deltag" => drop(words.next()),
                        word => write!(f, " {word}")?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// An action with what takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub does: Action,
    /// `None`: there is nothing to take back.
    pub undo: Option<Action>,
    /// Whether it may be half done when it fails, and has to be taken back then too: so it is with
    /// stopping, starting and subvolumes. LVM does a command or does it not.
    pub by_halves: bool,
}

/// What a swap will do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapPlan {
    pub steps: Vec<Step>,
    /// As the data that is there now will be called until it is released.
    pub old: String,
}

/// Why a swap did not happen, and what came of taking it back.
#[derive(Debug)]
pub struct Failed {
    /// The step that failed, from 0, and why.
    pub step: usize,
    pub error: Error,
    /// `None`: everything is as it was. Else the action that could not be taken back, and why;
    /// those in `left`, in this order, were not tried then.
    pub stuck: Option<(Action, Error)>,
    pub left: Vec<Action>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} failed: {}; ", self.step + 1, self.error)?;
        match &self.stuck {
            None => f.write_str("everything is as it was before"),
            Some((action, error)) => {
                write!(f, "going back failed at `{action}`: {error}")?;
                let mut left = self.left.iter();
                left.try_for_each(|action| write!(f, "; still to do: {action}"))
            }
        }
    }
}

impl std::error::Error for Failed {}

/// Carries out `steps` by `act`. When one fails, those that were done are taken back, the last
/// first; when that fails too it stops there, for starting a workload on half a volume would be
/// worse.
///
/// # Errors
/// [`Failed`].
pub fn run(
    steps: &[Step],
    act: &mut dyn FnMut(&Action) -> Result<()>,
) -> std::result::Result<(), Box<Failed>> {
    for (at, step) in steps.iter().enumerate() {
        let Err(error) = act(&step.does) else {
            continue;
        };
        let done = at + usize::from(step.by_halves);
        let mut undo = steps[..done]
            .iter()
            .rev()
            .filter_map(|step| step.undo.clone());
        let mut stuck = None;
        for action in undo.by_ref() {
            if let Err(error) = act(&action) {
                stuck = Some((action, error));
                break;
            }
        }
        return Err(Box::new(Failed {
            step: at,
            error,
            stuck,
            left: undo.collect(),
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lvm(words: &[&str]) -> Action {
        Action::Lvm {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            why: "test",
        }
    }

    fn steps() -> Vec<Step> {
        let step = |does: Action, undo: Option<Action>, by_halves| Step {
            does,
            undo,
            by_halves,
        };
        vec![
            step(Action::Stop, Some(Action::Start), true),
            step(lvm(&["+a"]), Some(lvm(&["-a"])), false),
            step(lvm(&["+b"]), Some(lvm(&["-b"])), false),
            step(lvm(&["look"]), None, false),
            step(Action::Start, Some(Action::Stop), true),
        ]
    }

    /// A world in which actions are sets and flags.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct World {
        runs: bool,
        has: Vec<String>,
    }

    impl World {
        fn new() -> Self {
            Self {
                runs: true,
                has: Vec::new(),
            }
        }

        fn act(&mut self, action: &Action) {
            match action {
                Action::Stop => self.runs = false,
                Action::Start => self.runs = true,
                Action::Lvm { words, .. } => match words[0].split_at(1) {
                    ("+", name) => self.has.push(name.to_owned()),
                    ("-", name) => assert_eq!(self.has.pop().as_deref(), Some(name)),
                    _ => {}
                },
                Action::Subvolume { .. } => {}
            }
        }
    }

    #[test]
    fn r03_whichever_step_fails_all_is_as_it_was() {
        let steps = steps();
        for fails in 0..steps.len() {
            for half in [false, true] {
                let (mut world, mut count) = (World::new(), 0);
                let failed = run(&steps, &mut |action| {
                    count += 1;
                    if count == fails + 1 {
                        if half && steps[fails].by_halves {
                            world.act(action);
                        }
                        return Err(Error::bad("test", "fails"));
                    }
                    world.act(action);
                    Ok(())
                });
                let failed = failed.unwrap_err();
                assert_eq!(failed.step, fails);
                assert!(failed.stuck.is_none() && failed.left.is_empty());
                assert_eq!(world, World::new(), "{fails}");
                assert!(failed.to_string().ends_with("as it was before"));
            }
        }
        let mut world = World::new();
        run(&steps, &mut |action| {
            world.act(action);
            Ok(())
        })
        .unwrap();
        assert!(world.runs);
        assert_eq!(world.has, ["a", "b"]);
    }

    #[test]
    fn what_cannot_be_taken_back_is_told_and_nothing_is_started_on_it() {
        let mut started = false;
        let failed = run(&steps(), &mut |action| {
            started |= *action == Action::Start;
            match action {
                Action::Lvm { words, .. } if words[0] == "look" || words[0] == "-b" => {
                    Err(Error::bad("test", "fails"))
                }
                _ => Ok(()),
            }
        });
        let failed = failed.unwrap_err();
        assert_eq!(failed.stuck.as_ref().unwrap().0, lvm(&["-b"]));
        assert_eq!(failed.left, [lvm(&["-a"]), Action::Start]);
        assert!(!started);
        assert!(
            failed
                .to_string()
                .contains("still to do: start the workload")
        );
    }
}
