//! The coverage proof: every path under a root takes exactly one declared route.
//!
//! Declarations become *claims* on paths. At one path the most specific claim wins
//! ([`Rank`]); below it, the deepest claim around a path does. So each path has one owner or
//! none, and what has none is said.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tree::{RelPath, escape};

use crate::bundle::missing_members;
use crate::claim::{Claimed, NAME_BYTES_MAX, volume_name};
use crate::diagnostic::{Diagnostic, Mark};
use crate::look::{Entry, Landscape, Seen};
use crate::made::{InventorySpec, Made, Making};
use crate::meant::{
    Config, Dataset, Declared, DeclaredSource, Guard, Refetch, Root, RootEach, Snapshot, Source,
    StoreKind,
};
use crate::name::name_from;
use crate::pattern::Pattern;
use crate::scope::{ExcludeSet, Scope};
use crate::volume::{Images, VolumeGroup, VolumeSpec};

/// The configuration laid over what is on disk.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// What there is to back up, routes of nobody (`[]`) included: declared ones first, then
    /// roots, each in the order of the file. Those whose name is in `held` must not be touched
    /// now: their scope is not to be trusted.
    pub datasets: Vec<Dataset>,
    /// Names of datasets, or of what the catalog knows in a root that cannot be listed, for
    /// which it is not known now what belongs to them.
    pub held: Vec<Held>,
    /// One line for each path directly in a root, and one for each path that is carved out of
    /// where it lies or declared outside the roots; in the order of the paths. Then what is made,
    /// by what it is made of.
    pub proof: Vec<Line>,
    /// Lines that lead nowhere.
    pub unrouted: Vec<Unrouted>,
    /// Names in the catalog that are no dataset's at present, and where those were. Their
    /// replicas stay as they are.
    pub gone: Vec<(String, PathBuf)>,
    /// Ties, name collisions, what could not be looked at.
    pub errors: Vec<Diagnostic>,
    /// What is allowed, but may not be meant.
    pub warnings: Vec<Diagnostic>,
}

/// A dataset left alone for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub name: String,
    pub why: String,
}

/// Who backs up a path, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub path: PathBuf,
    pub dataset: Option<String>,
    pub route: Option<Vec<String>>,
    pub because: Because,
    /// Given when the route is empty.
    pub why: Option<String>,
}

/// Which declaration decided; lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// A dataset's `path`.
    Declared { line: usize },
    /// A dataset's `match`.
    Match { line: usize, pattern: String },
    /// The root's `each`.
    Each { line: usize },
    /// Thrice's own: a store or the state directory.
    Own,
    /// None.
    Nothing,
}

/// A path under a root that takes no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrouted {
    pub path: PathBuf,
    pub message: String,
    pub remedy: String,
}

/// How specific a claim is; the greatest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// A folder of a root.
    Folder,
    /// A root itself: what lies loose in it.
    Root,
    /// Literal components, literal bytes.
    Match(usize, usize),
    Own,
    Path,
}

/// Whom a claimed path belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    /// Index of a draft.
    Draft(usize),
    /// Several drafts with an equal claim.
    Tie(Vec<usize>),
    /// Thrice itself.
    Own,
    /// Nobody, and nothing lies there that would need anybody.
    Empty,
    /// Nobody: message and remedy.
    Nobody(String, String),
}

struct Claim {
    rank: Rank,
    is_dir: bool,
    owner: Owner,
}

/// A dataset to be, until it is known which of its claims hold.
struct Draft<'a> {
    name: String,
    base: PathBuf,
    shape: Shape<'a>,
    route: &'a [String],
    why: Option<&'a String>,
    guard: Guard,
    exclude: &'a ExcludeSet,
    cross_mounts: bool,
    sqlite: bool,
    snapshot: Snapshot,
    canary: Option<bool>,
    critical: bool,
    refetch: Option<&'a Refetch>,
    because: Because,
    mark: &'a Mark,
    declared: bool,
    held: Option<String>,
    /// Its name is another's.
    refused: bool,
}

#[derive(Clone)]
enum Shape<'a> {
    /// All below the base.
    Whole,
    /// The claimed paths only.
    Only,
    /// The loose files of a root.
    Loose,
    /// All of a volume.
    Volume(Box<VolumeSpec>),
    /// All of a device.
    Device(&'a Path),
    /// No paths at all: its files are made.
    Made(&'a Made),
}

/// Lays `config` over `landscape`. `known` says which name the catalog has already given to
/// which base ([`Source::Tree`]), so that a newcomer never takes an old one's name. Pure.
pub fn resolve(
    config: &Config,
    landscape: &Landscape,
    known: &BTreeMap<String, PathBuf>,
) -> Coverage {
    let mut proof = Proof {
        config,
        landscape,
        known,
        drafts: Vec::new(),
        claims: BTreeMap::new(),
        made: Vec::new(),
        coverage: Coverage::default(),
    };
    for declared in &config.datasets {
        proof.declare(declared);
    }
    proof.claim_own();
    for root in &config.roots {
        proof.claim_root(root);
    }
    proof.settle_ties();
    proof.settle_names();
    proof.write_datasets();
    let missing = missing_members(&config.bundles, &proof.coverage.datasets);
    proof.coverage.errors.extend(missing);
    proof.write_lines();
    proof.coverage
}

struct Proof<'a> {
    config: &'a Config,
    landscape: &'a Landscape,
    known: &'a BTreeMap<String, PathBuf>,
    drafts: Vec<Draft<'a>>,
    claims: BTreeMap<PathBuf, Claim>,
    /// Lines about what has no path.
    made: Vec<Line>,
    coverage: Coverage,
}

impl<'a> Proof<'a> {
    fn declare(&mut self, declared: &'a Declared) {
        let mut draft = Draft {
            name: declared.name.clone(),
            base: declared.what.base(),
            shape: Shape::Whole,
            route: &declared.route,
            why: declared.why.as_ref(),
            guard: declared.guard,
            exclude: &declared.exclude,
            cross_mounts: declared.cross_mounts,
            sqlite: declared.sqlite,
            snapshot: declared.snapshot,
            canary: declared.canary,
            critical: declared.critical,
            refetch: declared.refetch.as_ref(),
            because: Because::Declared {
                line: declared.mark.line,
            },
            mark: &declared.mark,
            declared: true,
            held: None,
            refused: false,
        };
        match &declared.what {
            DeclaredSource::Path(path) => {
                let is_dir = self.declare_path(path, &mut draft);
                let owner = self.draft(draft);
                self.claim(path.clone(), Rank::Path, is_dir, owner);
            }
            DeclaredSource::Database(file) => self.declare_database(file, draft),
            DeclaredSource::Match(pattern) => self.declare_match(pattern, draft),
            DeclaredSource::Volume(volume) => {
                draft.shape = Shape::Volume(volume.clone());
                let place = volume.place();
                let owner = self.draft(draft);
                self.claim(place, Rank::Path, true, owner);
            }
            DeclaredSource::Device(device) => {
                draft.shape = Shape::Device(device);
                self.draft(draft);
            }
            DeclaredSource::Made(made) => {
                draft.shape = Shape::Made(made);
                self.draft(draft);
            }
        }
    }

    /// A database is its file, and those beside it that are its log.
    fn declare_database(&mut self, file: &Path, mut draft: Draft<'a>) {
        draft.sqlite = true;
        let is_dir = self.declare_path(file, &mut draft);
        if is_dir && draft.held.is_none() && matches!(draft.shape, Shape::Whole) {
            let seen = self.landscape.sources.get(file);
            if seen == Some(&Seen::Dir) {
                let why = format!("`{}` is a directory, and no database", show(file));
                let error = Diagnostic::error(why.clone(), Some(draft.mark.clone()));
                self.coverage
                    .errors
                    .push(error.remedy("name the file, or write `path`"));
                draft.held = Some(why);
            }
        }
        let owner = self.draft(draft);
        for ending in ["", "-wal", "-shm", "-journal"] {
            let mut path = file.as_os_str().to_owned();
            path.push(ending);
            let is_dir = is_dir && ending.is_empty();
            self.claim(path.into(), Rank::Path, is_dir, owner.clone());
        }
    }

    /// Says of `draft` what lies at `path`; whether it is a directory.
    fn declare_path(&mut self, path: &Path, draft: &mut Draft<'a>) -> bool {
        let shown = show(path);
        let source = self.landscape.sources.get(path);
        match source.unwrap_or(&Seen::Missing) {
            Seen::Dir => return true,
            Seen::Other => {
                draft.base = path.parent().unwrap_or(path).into();
                draft.shape = Shape::Only;
                return false;
            }
            Seen::Symlink => draft.held = Some(format!("`{shown}` is a symbolic link")),
            Seen::Unreadable(why) => draft.held = Some(format!("`{shown}`: {why}")),
            // It stays a dataset: whoever opens it sees that it is missing, and stops.
            Seen::Missing if !draft.route.is_empty() => {
                let message = format!("the source of `{}` is missing: `{shown}`", draft.name);
                let error = Diagnostic::error(message.clone(), Some(draft.mark.clone()));
                let remedy = "mount or restore it; if it is gone for good, remove the dataset";
                self.coverage.errors.push(error.remedy(remedy));
                // A file's base is its folder, also while the file is away.
                let parent = path.parent().unwrap_or(path);
                if self
                    .known
                    .get(&draft.name)
                    .is_some_and(|base| base == parent)
                {
                    draft.base = parent.into();
                    draft.shape = Shape::Only;
                    draft.held = Some(message);
                    return false;
                }
            }
            Seen::Missing => {}
        }
        if let Some(why) = &draft.held {
            let error = Diagnostic::error(why.clone(), Some(draft.mark.clone()));
            let remedy = "name the directory or file itself";
            self.coverage.errors.push(error.remedy(remedy));
        }
        true
    }

    fn declare_match(&mut self, pattern: &'a Pattern, mut draft: Draft<'a>) {
        draft.shape = Shape::Only;
        draft.because = Because::Match {
            line: draft.mark.line,
            pattern: pattern.text().into(),
        };
        let found = match self.landscape.matches.get(&draft.name) {
            Some(Ok(found)) => found.as_slice(),
            Some(Err(why)) => {
                let message = format!("what `{}` matches is not known: {why}", draft.name);
                draft.held = Some(message.clone());
                let error = Diagnostic::error(message, Some(draft.mark.clone()));
                let error = error.remedy("mount it, or fix its access");
                self.coverage.errors.push(error);
                &[]
            }
            None => &[],
        };
        let (components, bytes) = pattern.specificity();
        let owner = self.draft(draft);
        for (path, seen) in found {
            let rank = Rank::Match(components, bytes);
            self.claim(path.clone(), rank, *seen == Seen::Dir, owner.clone());
        }
    }

    /// The state directory and the local stores, which are no source.
    fn claim_own(&mut self) {
        let disks = self
            .config
            .stores
            .iter()
            .filter(|store| store.kind == StoreKind::Disk);
        let places = disks.map(|store| &store.path);
        let places = places.chain([&self.config.host.state]);
        for path in places.chain(&self.landscape.own) {
            self.claim(path.clone(), Rank::Own, true, Owner::Own);
        }
    }

    /// Every volume of a group that can be read as files, or of which an image is asked for.
    fn claim_volumes(&mut self, root: &'a Root, group: &'a VolumeGroup) {
        let route = match root.each {
            Some(RootEach::Volume) => root.route.as_deref(),
            _ => None,
        };
        let seen = match self.landscape.volumes.get(&root.path) {
            Some(Ok(seen)) => seen,
            Some(Err(why)) => return self.withhold_root(root, route.is_some(), why),
            None => return self.withhold_root(root, route.is_some(), "it was not looked at"),
        };
        let Some(route) = route else { return };
        for volume in seen {
            let spec = VolumeSpec {
                group: group.clone(),
                volume: volume.name.clone(),
                image: match (group.image, &volume.unreadable) {
                    (Images::Unreadable, Some(_)) => Images::All,
                    (asked, _) => asked,
                },
            };
            let (place, own) = (spec.place(), name_from(volume.name.as_bytes()));
            let unreadable = volume.unreadable.as_ref();
            let owner = match unreadable.filter(|_| spec.image != Images::All) {
                None => match self.name_volume(group, &place, &own) {
                    Ok(name) => {
                        let shape = Shape::Volume(Box::new(spec));
                        self.draft(automatic(root, route, name, place.clone(), shape))
                    }
                    Err((why, remedy)) => Owner::Nobody(why, remedy),
                },
                Some(why) => Owner::Nobody(
                    why.clone(),
                    format!(
                        "write `image = \"unreadable\"` for images of such volumes; or \
                         `[dataset.{own}]` with `volume = \"{}/{}\"`, `route = []` and \
                         `why`, and back up what is on it from where it is used",
                        group.name, volume.name
                    ),
                ),
            };
            self.claim(place, Rank::Folder, true, owner);
        }
        if let Some(Err(why)) = self.landscape.claims.as_ref().filter(|_| group.claims) {
            let message = format!("Kubernetes does not say whose volumes these are: {why}");
            let warning = Diagnostic::error(message, Some(root.mark.clone())).warning();
            let remedy = "those that are new get their own names for good; let it answer first";
            self.coverage.warnings.push(warning.remedy(remedy));
        }
    }

    /// The name of a volume's dataset, or why it is not known and what to do.
    fn name_volume(
        &self,
        group: &VolumeGroup,
        place: &Path,
        own: &str,
    ) -> Result<String, (String, String)> {
        if !group.claims {
            return Ok(own.to_owned());
        }
        let claimed = match &self.landscape.claims {
            Some(Ok(claims)) => claims
                .get(place)
                .map_or(Claimed::Not, |name| Claimed::By(name)),
            Some(Err(why)) => Claimed::Unknown(why),
            None => Claimed::Not,
        };
        let is_free = |name: &str| self.config.datasets.iter().all(|d| d.name != name);
        volume_name(place, own, claimed, self.known, &is_free)
    }

    fn claim_root(&mut self, root: &'a Root) {
        if let Some(group) = &root.group {
            return self.claim_volumes(root, group);
        }
        let listing = self.landscape.roots.get(&root.path);
        let route = match (&root.each, &root.route) {
            (Some(RootEach::Dir), Some(route)) => Some(route.as_slice()),
            _ => None,
        };
        match (listing, route) {
            (Some(Ok(entries)), Some(route)) => self.claim_entries(root, route, entries),
            (Some(Ok(_)), None) => {}
            (Some(Err(why)), _) => self.withhold_root(root, route.is_some(), why),
            (None, _) => self.withhold_root(root, route.is_some(), "it was not looked at"),
        }
    }

    /// A root that could not be listed: nothing in it is touched.
    fn withhold_root(&mut self, root: &Root, each: bool, why: &str) {
        let shown = show(&root.path);
        let message = format!("the root `{shown}` cannot be listed: {why}");
        if each {
            self.claim(root.path.clone(), Rank::Root, true, Owner::Empty);
            for (name, path) in self.known {
                let declared = self.config.datasets.iter().any(|d| d.name == *name);
                if !declared && (*path == root.path || path.parent() == Some(&root.path)) {
                    self.coverage.held.push(Held {
                        name: name.clone(),
                        why: message.clone(),
                    });
                }
            }
        }
        let error = Diagnostic::error(message, Some(root.mark.clone()));
        let remedy = "mount it; if it is gone for good, remove the root";
        self.coverage.errors.push(error.remedy(remedy));
    }

    /// Every folder is a dataset, and so are together the loose files.
    fn claim_entries(&mut self, root: &'a Root, route: &'a [String], entries: &[Entry]) {
        let last = root.path.file_name().map_or(&b"root"[..], OsStr::as_bytes);
        let name = format!("{}-files", name_from(last));
        let loose = entries
            .iter()
            .any(|e| matches!(e.seen, Seen::Other | Seen::Symlink));
        let owner = if loose || self.known.get(&name) == Some(&root.path) {
            let draft = automatic(root, route, name, root.path.clone(), Shape::Loose);
            self.draft(draft)
        } else {
            Owner::Empty
        };
        self.claim(root.path.clone(), Rank::Root, true, owner);
        for entry in entries {
            let path = root.path.join(OsStr::from_bytes(&entry.name));
            let owner = match &entry.seen {
                Seen::Dir => {
                    let name = name_from(&entry.name);
                    let draft = automatic(root, route, name, path.clone(), Shape::Whole);
                    self.draft(draft)
                }
                Seen::Unreadable(why) => Owner::Nobody(
                    format!("it cannot be looked at: {why}"),
                    "fix its access, or declare it".into(),
                ),
                Seen::Other | Seen::Symlink | Seen::Missing => continue,
            };
            self.claim(path, Rank::Folder, true, owner);
        }
    }

    fn draft(&mut self, draft: Draft<'a>) -> Owner {
        self.drafts.push(draft);
        Owner::Draft(self.drafts.len() - 1)
    }

    fn claim(&mut self, path: PathBuf, rank: Rank, is_dir: bool, owner: Owner) {
        let claim = Claim {
            rank,
            is_dir,
            owner,
        };
        let mut slot = match self.claims.entry(path) {
            Slot::Vacant(slot) => {
                slot.insert(claim);
                return;
            }
            Slot::Occupied(slot) => slot,
        };
        let held = slot.get_mut();
        if claim.rank > held.rank {
            *held = claim;
        } else if claim.rank == held.rank
            && let Owner::Draft(new) = claim.owner
        {
            match &mut held.owner {
                Owner::Draft(old) => held.owner = Owner::Tie(vec![*old, new]),
                Owner::Tie(all) => all.push(new),
                _ => {}
            }
        }
    }

    /// Datasets that tie for a path are not touched: without it, they would lose it.
    fn settle_ties(&mut self) {
        for (path, claim) in &mut self.claims {
            let Owner::Tie(tied) = &claim.owner else {
                continue;
            };
            let names: Vec<String> = tied
                .iter()
                .map(|index| format!("`{}`", self.drafts[*index].name))
                .collect();
            let names = names.join(" and ");
            let message = format!("{names} claim `{}`, none more specific", show(path));
            let mark = |index: usize| self.drafts[index].mark.clone();
            let mut error = Diagnostic::error(message.clone(), Some(mark(tied[0])));
            for other in &tied[1..] {
                error = error.also(mark(*other), "as specific as this");
            }
            let remedy = "narrow one of the patterns, or declare the path by itself";
            self.coverage.errors.push(error.remedy(remedy));
            for index in tied {
                self.drafts[*index].held = Some(message.clone());
            }
            claim.owner = Owner::Nobody(format!("{names} claim it: a tie"), remedy.into());
        }
    }

    /// One name, one dataset: the one the catalog knows by it, else the declared one, else the
    /// first in the file. The others' paths are unrouted.
    fn settle_names(&mut self) {
        let mut takers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, owned) in self.owned().iter().enumerate() {
            let draft = &self.drafts[index];
            if draft.declared || !owned.is_empty() {
                takers.entry(&draft.name).or_default().push(index);
            }
        }
        let mut refused: Vec<(usize, String)> = Vec::new();
        for (name, takers) in takers {
            let keeper = self.keeper(name, &takers);
            let taken = match keeper {
                Some(keeper) => show_base(&self.drafts[keeper]),
                None => self
                    .known
                    .get(name)
                    .map_or_else(String::new, |path| show(path)),
            };
            let why = format!(
                "the name `{}` belongs to `{taken}`",
                escape(name.as_bytes())
            );
            let others = takers.iter().filter(|taker| Some(**taker) != keeper);
            refused.extend(others.map(|other| (*other, why.clone())));
            if let Some(keeper) = keeper.filter(|_| name.len() > NAME_BYTES_MAX) {
                let why = format!("its name is longer than {NAME_BYTES_MAX} bytes");
                refused.push((keeper, why));
            }
        }
        for (index, why) in refused {
            self.refuse(index, &why);
        }
    }

    /// Which of `takers` gets the name; none when it is that of a dataset that may come back.
    fn keeper(&self, name: &str, takers: &[usize]) -> Option<usize> {
        let known = self.known.get(name);
        let of = |test: &dyn Fn(&Draft<'a>) -> bool| {
            let mut takers = takers.iter().copied();
            takers.find(|taker| test(&self.drafts[*taker]))
        };
        let may_come_back = |path: &PathBuf| {
            let mut roots = self.config.roots.iter();
            roots.any(|root| path.starts_with(&root.path))
        };
        of(&|draft| known == Some(&draft.base))
            .or_else(|| of(&|draft| draft.declared))
            .or_else(|| {
                takers
                    .first()
                    .copied()
                    .filter(|_| !known.is_some_and(may_come_back))
            })
    }

    fn refuse(&mut self, index: usize, why: &str) {
        let draft = &mut self.drafts[index];
        draft.refused = true;
        let remedy = format!(
            "declare it with a name of its own: `[dataset.NAME]` with `path = \"{}\"`",
            show(&draft.base)
        );
        let error = format!("`{}` takes no route: {why}", show_base(draft));
        let error = Diagnostic::error(error, Some(draft.mark.clone()));
        self.coverage.errors.push(error.remedy(remedy.clone()));
        for claim in self.claims.values_mut() {
            if claim.owner == Owner::Draft(index) {
                claim.owner = Owner::Nobody(why.into(), remedy.clone());
            }
        }
    }

    /// For each draft, the paths that it won, and whether each is a directory.
    fn owned(&self) -> Vec<Vec<(&PathBuf, bool)>> {
        let mut owned = vec![Vec::new(); self.drafts.len()];
        for (path, claim) in &self.claims {
            if let Owner::Draft(index) = claim.owner {
                owned[index].push((path, claim.is_dir));
            }
        }
        owned
    }

    fn write_datasets(&mut self) {
        let (mut datasets, mut held, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        let mut lines = Vec::new();
        for (draft, owned) in self.drafts.iter().zip(self.owned()) {
            if let Some(why) = &draft.held {
                held.push(Held {
                    name: draft.name.clone(),
                    why: why.clone(),
                });
            }
            // A pattern that lost all it matches is still a dataset: of nothing, now.
            let has_no_path =
                matches!(draft.shape, Shape::Only | Shape::Made(_) | Shape::Device(_));
            let of_nothing = draft.declared && (has_no_path || draft.held.is_some());
            if draft.refused || (owned.is_empty() && !of_nothing) {
                continue;
            }
            let made = matches!(draft.shape, Shape::Made(_) | Shape::Device(_));
            if owned.is_empty() && !made && draft.held.is_none() && !draft.route.is_empty() {
                warnings.push(self.nothing_left(draft));
            }
            let source = match &draft.shape {
                Shape::Made(made) => Source::Made(Box::new((*made).clone())),
                Shape::Volume(volume) => Source::Volume(volume.clone(), self.scope(draft, &owned)),
                Shape::Device(device) => Source::Device(device.to_path_buf()),
                _ => Source::Tree {
                    base: draft.base.clone(),
                    scope: self.scope(draft, &owned),
                },
            };
            let inventory = draft
                .refetch
                .and_then(|refetch| inventory(draft, refetch, &source));
            datasets.push(Dataset {
                name: draft.name.clone(),
                source,
                route: draft.route.to_vec(),
                why: draft.why.cloned(),
                guard: draft.guard,
                cross_mounts: draft.cross_mounts,
                sqlite: draft.sqlite,
                snapshot: draft.snapshot,
                canary: draft.canary,
                critical: draft.critical,
            });
            let first = datasets.len() - 1;
            datasets.extend(inventory);
            let made = datasets[first..].iter();
            let made = made
                .filter(|dataset| matches!(dataset.source, Source::Made(_) | Source::Device(_)));
            lines.extend(made.map(|dataset| Line {
                path: dataset.source.place(),
                dataset: Some(dataset.name.clone()),
                route: Some(dataset.route.clone()),
                because: draft.because.clone(),
                why: dataset.why.clone(),
            }));
        }
        self.made = lines;
        self.refuse_inventories(&mut datasets);
        let coverage = &mut self.coverage;
        coverage.datasets = datasets;
        coverage.held.extend(held);
        coverage.warnings.extend(warnings);
        let alive: BTreeSet<&String> = coverage.datasets.iter().map(|d| &d.name).collect();
        let gone = self.known.iter().filter(|(name, _)| !alive.contains(name));
        coverage.gone = gone.map(|(n, p)| (n.clone(), p.clone())).collect();
    }

    /// An inventory whose name another dataset has is none.
    fn refuse_inventories(&mut self, datasets: &mut Vec<Dataset>) {
        let is_inventory = |dataset: &Dataset| match &dataset.source {
            Source::Made(made) => matches!(made.what, Making::Inventory(_)),
            _ => false,
        };
        let others = datasets.iter().filter(|dataset| !is_inventory(dataset));
        let taken: BTreeSet<String> = others.map(|dataset| dataset.name.clone()).collect();
        datasets.retain(|dataset| {
            let refused = is_inventory(dataset) && taken.contains(&dataset.name);
            if refused {
                let name = &dataset.name;
                let message = format!("`{name}` would be an inventory, and is another dataset");
                let error = Diagnostic::error(message, None);
                self.coverage
                    .errors
                    .push(error.remedy("give the other one another name"));
            }
            !refused
        });
    }

    /// A pattern that has nothing.
    fn nothing_left(&self, draft: &Draft<'a>) -> Diagnostic {
        let found = self.landscape.matches.get(&draft.name);
        let message = match found {
            Some(Ok(found)) if !found.is_empty() => {
                format!(
                    "all that `{}` matches is declared more specifically",
                    draft.name
                )
            }
            _ => format!("`{}` matches nothing", draft.name),
        };
        let warning = Diagnostic::error(message, Some(draft.mark.clone())).warning();
        warning.remedy("check its pattern, or remove it")
    }

    /// What of the draft's base is its own. All its claims are equally deep or there is one,
    /// so nothing of it lies inside what is carved out of it.
    fn scope(&self, draft: &Draft<'a>, owned: &[(&PathBuf, bool)]) -> Scope {
        let only = owned.iter().map(|(path, _)| below(&draft.base, path));
        let only = matches!(draft.shape, Shape::Only).then(|| only.collect());
        let mut carved: Vec<RelPath> = Vec::new();
        for (path, _) in owned {
            for (inner, claim) in self.claims_inside(path) {
                let rel = below(&draft.base, inner);
                let loose = !claim.is_dir && inner.parent() == Some(path);
                let wanted = !matches!(draft.shape, Shape::Loose) || loose;
                if wanted && !carved.last().is_some_and(|last| rel.is_in(last)) {
                    carved.push(rel);
                }
            }
        }
        Scope {
            only,
            loose_files_only: matches!(draft.shape, Shape::Loose),
            carved,
            exclude: draft.exclude.clone(),
        }
    }

    /// The claims below `path`, itself not among them: paths sort component by component,
    /// so these follow it at once.
    fn claims_inside(&self, path: &Path) -> impl Iterator<Item = (&PathBuf, &Claim)> {
        let after = (Bound::Excluded(path), Bound::Unbounded);
        let claims = self.claims.range::<Path, _>(after);
        claims.take_while(move |(inner, _)| inner.starts_with(path))
    }

    fn write_lines(&mut self) {
        let mut paths: BTreeMap<PathBuf, bool> = BTreeMap::new();
        for (path, claim) in &self.claims {
            // A root's own claim and Thrice's own places are of interest inside others only.
            let shown = match claim.rank {
                Rank::Root => false,
                Rank::Own => self.owner_around(path).is_some(),
                _ => true,
            };
            if shown {
                paths.insert(path.clone(), claim.is_dir);
            }
        }
        for (root, listing) in &self.landscape.volumes {
            match listing {
                Ok(seen) => paths.extend(seen.iter().map(|one| (root.join(&one.name), true))),
                Err(_) => drop(paths.insert(root.clone(), true)),
            }
        }
        for (root, listing) in &self.landscape.roots {
            let Ok(entries) = listing else {
                paths.insert(root.clone(), true);
                continue;
            };
            for entry in entries {
                let path = root.join(OsStr::from_bytes(&entry.name));
                paths.insert(path, !matches!(entry.seen, Seen::Other | Seen::Symlink));
            }
        }
        for (path, is_dir) in paths {
            self.write_line(path, is_dir);
        }
        self.coverage.proof.append(&mut self.made);
    }

    /// The deepest claim strictly around `path`.
    fn owner_around<'p>(&'p self, path: &'p Path) -> Option<(&'p Path, &'p Claim)> {
        let mut around = path.ancestors().skip(1);
        around.find_map(|outer| Some((outer, self.claims.get(outer)?)))
    }

    /// The claim that decides on `path`.
    fn claim_on<'p>(&'p self, path: &'p Path, is_dir: bool) -> Option<&'p Claim> {
        if let Some(here) = self.claims.get(path) {
            return Some(here);
        }
        let (outer, claim) = self.owner_around(path)?;
        // A root's claim is on the files directly in it only.
        let reaches = claim.rank != Rank::Root || (!is_dir && path.parent() == Some(outer));
        reaches.then_some(claim)
    }

    fn write_line(&mut self, path: PathBuf, is_dir: bool) {
        let mut line = Line {
            path: path.clone(),
            dataset: None,
            route: None,
            because: Because::Nothing,
            why: None,
        };
        let (message, remedy) = match self.claim_on(&path, is_dir).map(|claim| &claim.owner) {
            Some(Owner::Draft(index)) => {
                let draft = &self.drafts[*index];
                line.dataset = Some(draft.name.clone());
                line.route = Some(draft.route.to_vec());
                line.because = draft.because.clone();
                line.why = draft.why.cloned();
                return self.coverage.proof.push(line);
            }
            Some(Owner::Own) => {
                line.because = Because::Own;
                return self.coverage.proof.push(line);
            }
            // The root is unreadable, or a root inside another with nothing loose in it.
            Some(Owner::Empty) => {
                line.because = self.root_of(&path);
                return self.coverage.proof.push(line);
            }
            Some(Owner::Nobody(message, remedy)) => (message.clone(), remedy.clone()),
            Some(Owner::Tie(_)) | None => {
                let shown = show(&path);
                let (key, place, each) = match shown.strip_prefix(crate::volume::PREFIX) {
                    Some(volume) => ("volume", volume, "volume"),
                    None => ("path", &*shown, "dir"),
                };
                (
                    "it belongs to no dataset".to_string(),
                    format!(
                        "write `[dataset.NAME]` with `{key} = \"{place}\"` and a `route`, or \
                         give its root `each = \"{each}\"` and a `route`"
                    ),
                )
            }
        };
        self.coverage.proof.push(line);
        self.coverage.unrouted.push(Unrouted {
            path,
            message,
            remedy,
        });
    }

    fn root_of(&self, path: &Path) -> Because {
        let root = self.config.roots.iter().find(|root| root.path == path);
        root.map_or(Because::Nothing, |root| Because::Each {
            line: root.mark.line,
        })
    }
}

/// A dataset that a root makes.
fn automatic<'a>(
    root: &'a Root,
    route: &'a [String],
    name: String,
    base: PathBuf,
    shape: Shape<'a>,
) -> Draft<'a> {
    Draft {
        name,
        base,
        shape,
        route,
        why: root.why.as_ref(),
        guard: root.guard,
        exclude: &root.exclude,
        cross_mounts: false,
        sqlite: root.sqlite,
        snapshot: root.snapshot,
        canary: None,
        critical: root.critical,
        refetch: None,
        because: Because::Each {
            line: root.mark.line,
        },
        mark: &root.mark,
        declared: false,
        held: None,
        refused: false,
    }
}

/// The dataset that lists what is in a tree which can be fetched again.
fn inventory(draft: &Draft<'_>, refetch: &Refetch, source: &Source) -> Option<Dataset> {
    let Source::Tree { base, scope } = source else {
        return None;
    };
    let what = Making::Inventory(InventorySpec {
        of: draft.name.clone(),
        base: base.clone(),
        scope: scope.clone(),
        origin: refetch.origin.clone(),
    });
    Some(Dataset {
        name: inventory_name(&draft.name),
        source: Source::Made(Box::new(Made {
            what,
            deadline: crate::made::INVENTORY_DEADLINE,
        })),
        route: refetch.route.clone(),
        why: None,
        guard: Guard::default(),
        cross_mounts: false,
        sqlite: false,
        snapshot: Snapshot::None,
        canary: None,
        critical: draft.critical,
    })
}

/// How the dataset that is the inventory of another is called.
pub fn inventory_name(dataset: &str) -> String {
    format!("{dataset}-inventory")
}

fn below(base: &Path, path: &Path) -> RelPath {
    path.strip_prefix(base)
        .ok()
        .and_then(|rel| RelPath::new(rel.as_os_str().as_bytes()).ok())
        .expect("claims are clean paths below their dataset's base")
}

fn show(path: &Path) -> String {
    escape(path.as_os_str().as_bytes()).into_owned()
}

fn show_base(draft: &Draft<'_>) -> String {
    match draft.shape {
        Shape::Loose => format!("the files in {}", show(&draft.base)),
        _ => show(&draft.base),
    }
}
