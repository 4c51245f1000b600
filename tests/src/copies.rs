//! Files that several nodes have of one another.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use qemu::checksum::Sparse;

use crate::{
    cluster::{Cluster, PATIENCE},
    wait_for,
};

/// Everything of one name is the same everywhere, and nothing stays in part: an image's kernel may still be on its way.
pub fn agree(cluster: &Cluster) -> anyhow::Result<()> {
    let all = wait_for("all files to be whole", PATIENCE, || {
        let all = files(cluster)?;
        let is_part = |name: &String| name.ends_with(".part");
        Ok((!all.keys().any(is_part)).then_some(all))
    })?;
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

fn files(cluster: &Cluster) -> anyhow::Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for agent in &cluster.agents {
        for folder in ["bases", "layers", "streams", "images"] {
            for entry in fs::read_dir(agent.data.join(folder))? {
                let path = entry?.path();
                let name = path.file_name().context("no name")?.to_string_lossy();
                let name = format!("{folder}/{name}");
                all.entry(name).or_default().push(path);
            }
        }
    }
    Ok(all)
}

fn sum(path: &Path) -> anyhow::Result<u32> {
    let mut sparse = Sparse::begin(File::open(path)?)?;
    loop {
        if let Some(sum) = sparse.step()? {
            return Ok(sum);
        }
    }
}
