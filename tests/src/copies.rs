//! Files that several nodes have of one another.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use qemu::checksum::Sparse;

use crate::cluster::Cluster;

/// Everything of that name is the same everywhere, and nothing is there in part. Nothing must be under way.
pub fn agree(cluster: &Cluster) -> anyhow::Result<()> {
    let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for agent in &cluster.agents {
        for folder in ["bases", "layers", "streams", "images"] {
            for entry in fs::read_dir(agent.data.join(folder))? {
                let path = entry?.path();
                let name = path.file_name().context("no name")?.to_string_lossy();
                anyhow::ensure!(!name.ends_with(".part"), "{} is left", path.display());
                all.entry(format!("{folder}/{name}"))
                    .or_default()
                    .push(path);
            }
        }
    }
    let mut compared = 0;
    for (name, copies) in all.iter().filter(|(_, copies)| copies.len() > 1) {
        let sums = copies
            .iter()
            .map(|copy| sum(copy))
            .collect::<Result<Vec<_>, _>>()?;
        anyhow::ensure!(
            sums.windows(2).all(|pair| pair[0] == pair[1]),
            "{name} is not the same everywhere: {copies:?}"
        );
        compared += 1;
    }
    anyhow::ensure!(compared > 0, "no file is on two nodes");
    Ok(())
}

fn sum(path: &Path) -> anyhow::Result<u32> {
    let mut sparse = Sparse::begin(File::open(path)?)?;
    loop {
        if let Some(sum) = sparse.step()? {
            return Ok(sum);
        }
    }
}
