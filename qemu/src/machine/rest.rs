//! The disk of a VM that has no process.

use super::{Engine, MachineError, system};
use crate::record::{LayerName, VmName, VmRecord};

/// Has the layers of a VM without a process not change any more, so that others can have them: what it writes from now on goes into
/// `next`, a layer whose name was never used. Returns them, the newest first; `None` for a VM that has never run here. The VM must not be
/// started meanwhile.
pub async fn freeze_disk(
    engine: &Engine,
    vm: &VmName,
    next: &LayerName,
    disk_bytes: u64,
) -> Result<Option<Vec<LayerName>>, MachineError> {
    let dir = engine.layout.vm(vm);
    let Some(mut record) = VmRecord::load(&dir)?.filter(|record| record.has_run) else {
        return Ok(None);
    };
    let layers = record.layers_with_next();
    if layers.is_empty() {
        return Ok(Some(layers));
    }
    engine.overlays.prepare(disk_bytes).await?;
    engine.overlays.create(next, disk_bytes, record.user)?;
    record.layers = std::iter::once(next).chain(&layers).cloned().collect();
    record.next_layer = None;
    // Before they are frozen: a VM that is started has a layer that it may write to.
    record.save(&dir)?;
    for layer in &layers {
        let frozen = engine.overlays.freeze(layer);
        frozen.map_err(system("cannot freeze a layer of the VM's disk"))?;
    }
    Ok(Some(layers))
}
