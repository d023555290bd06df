//! Large contents that have changed: what the store has already is not brought again.
//!
//! The signature of what the store holds comes from the catalog, which keeps those of contents that
//! have changed once: most large files never do, and theirs would only take room. Where it has
//! none (a first change, a catalog that was rebuilt) the store is asked to compute it: reading a
//! copy where it lies costs less than sending the content.

use crossbeam_channel::{Sender, bounded};
use store::{Place, Session, StageJob, Staged, Want};
use tree::{Content, DELTA_MIN, Delta, Digest, Kind, Matcher, Node, RelPath, Signature};

use catalog::Held;

use crate::live::Trouble;

/// What workers want of the thread that owns the catalog.
pub(crate) enum Ask {
    /// The signature of the content with this digest.
    Find(Digest, Sender<Signature>),
    /// Keep that of what is held at the path from now on.
    Keep(RelPath, Digest, Signature),
    /// The copy at the path is not what was written there, and a sealed version needs it.
    Rotten(RelPath),
}

/// Where contents go, and what is known of those that are there.
pub(crate) struct Target<'a> {
    pub(crate) session: &'a dyn Session,
    pub(crate) asks: Sender<Ask>,
    /// The number of the newest sealed version.
    pub(crate) sealed: u64,
}

/// The content that a new one is compared with.
pub(crate) struct Base<'a> {
    held: &'a Held,
    want: Want,
    known: Option<Signature>,
}

/// What became of a content.
pub(crate) enum Came {
    /// It is the base's.
    Same(Digest),
    Staged(Staged),
    /// It has to be brought whole.
    Not,
}

impl Base<'_> {
    /// Whether comparing costs no more than reading the new content.
    pub(crate) fn is_known(&self) -> bool {
        self.known.is_some()
    }
}

impl Target<'_> {
    /// What the replica holds at the path, where it is worth building on.
    pub(crate) fn base<'h>(
        &self,
        path: &RelPath,
        size: u64,
        held: Option<&'h Held>,
    ) -> Option<Base<'h>> {
        let held = held.filter(|held| held.node.kind == Kind::File)?;
        let node: &Node = &held.node;
        let extents = node.extents.as_deref();
        let data_len = extents.map_or(node.size, |extents| extents.iter().map(|e| e.len).sum());
        if size < DELTA_MIN || data_len < DELTA_MIN || !self.session.prefers_deltas() {
            return None;
        }
        let hash = node.hash?;
        let (answer, signature) = bounded(1);
        // Who owns the catalog has ended where it cannot be asked, or does not answer.
        let asked = self.asks.send(Ask::Find(hash, answer)).is_ok();
        let known = if asked { signature.recv().ok() } else { None };
        let want = Want {
            place: Place::Current(path.clone()),
            size: node.size,
            hash,
            extents: node.extents.clone(),
        };
        Some(Base { held, want, known })
    }

    /// Brings what of the content the base has not, if there is anything. Tells how much of it was
    /// read, in bytes.
    pub(crate) fn stage(
        &self,
        base: Base<'_>,
        job: &StageJob,
        content: &mut dyn Content,
    ) -> Result<(Came, u64), Trouble> {
        let Base { held, want, known } = base;
        let asked = || self.session.signature(&want);
        let signature = match known.map_or_else(asked, Ok) {
            Ok(signature) => signature,
            Err(error) => return Ok((self.not_built(held, job, error)?, 0)),
        };
        let extents = want.extents.as_deref();
        let Some(mut matcher) = Matcher::new(content, signature, want.size, extents) else {
            return Ok((Came::Not, 0));
        };
        if !matcher.differs()? && matcher.hash() == Some(want.hash) {
            return Ok((Came::Same(want.hash), matcher.bytes_read()));
        }
        let staged = self.session.stage_delta(job, &want, &mut matcher);
        let bytes_read = matcher.bytes_read();
        let staged = match staged {
            Ok(staged) => staged,
            Err(error) => return Ok((self.not_built(held, job, error)?, bytes_read)),
        };
        self.tell(Ask::Keep(
            job.path.clone(),
            staged.hash,
            matcher.signature(),
        ));
        Ok((Came::Staged(staged), bytes_read))
    }

    /// Nothing could be built on the base. Was it the base?
    fn not_built(&self, held: &Held, job: &StageJob, error: store::Error) -> Result<Came, Trouble> {
        use store::Error as E;
        if !matches!(error, E::Io { .. } | E::Damaged { .. } | E::Missing(_)) {
            return Err(error.into());
        }
        let good = match self.session.has(&job.path, &held.node) {
            Err(error @ (E::Wire(_) | E::Poisoned(_))) => return Err(error.into()),
            good => matches!(good, Ok(true)),
        };
        // What no sealed version needs goes with the next batch.
        if !good && held.since <= self.sealed {
            self.tell(Ask::Rotten(job.path.clone()));
        }
        Ok(Came::Not)
    }

    fn tell(&self, ask: Ask) {
        // Nobody is there to hear it only where the run has failed.
        let _ = self.asks.send(ask);
    }
}
