//! Who makes what.

use std::path::{Path, PathBuf};

use policy::Making;

use crate::error::{Error, Result, shown};
use crate::produce::{Earlier, Produce, Produced};
use crate::{Device, Guest, HostConfig, INVENTORY, Inventory, Job, UserCommand, database};

/// What makes the files of a dataset that is no tree.
pub fn producer(what: &Making, earlier: Earlier) -> Box<dyn Produce> {
    match what {
        Making::Database(spec) => database::producer(spec),
        Making::Device(spec) => {
            let good = earlier.good.into_iter();
            let good = good.map(|(path, at)| (path.to_string(), at)).collect();
            Box::new(Device::new(spec.clone(), good, earlier.now))
        }
        Making::Command(spec) => Box::new(UserCommand::new(spec.clone())),
        Making::Guest(id) => Box::new(Guest::new(*id)),
        Making::Host => Box::new(HostConfig::new()),
        Making::Inventory(spec) => {
            let before = earlier.cache.is_file().then(|| earlier.cache.clone());
            Box::new(Listed {
                inventory: Inventory::new(spec.clone(), before),
                cache: earlier.cache,
            })
        }
    }
}

/// An inventory that is kept here too, so that the next one need not read everything again.
struct Listed {
    inventory: Inventory,
    cache: PathBuf,
}

impl Produce for Listed {
    fn produce(&self, into: &Path, job: &Job<'_>) -> Result<Produced> {
        let produced = self.inventory.produce(into, job)?;
        self.keep(&into.join(INVENTORY))
            .map_err(Error::io(format!("keeping `{}`", shown(&self.cache))))?;
        Ok(produced)
    }
}

impl Listed {
    /// Half of it is never under its name; without it everything is read once more.
    fn keep(&self, made: &Path) -> std::io::Result<()> {
        if let Some(parent) = self.cache.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut half = self.cache.clone().into_os_string();
        half.push(".partial");
        std::fs::copy(made, &half)?;
        std::fs::rename(&half, &self.cache)
    }
}
