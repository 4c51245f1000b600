//! Virtio serial ports, by their names.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel lists them.
pub const FOLDER: &str = "/sys/class/virtio-ports";

/// Where the kernel lists the devices that they are ports of.
pub const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_console";

/// Whether there is a device that has ports, though none of them may have been told of yet.
pub fn have_device(driver: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(driver) {
        // Where there is no such device, its driver need not have been loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    for entry in entries {
        // Beside what the driver itself has.
        if entry?.file_name().as_encoded_bytes().starts_with(b"virtio") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The device of the port with this name.
pub fn find(ports: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(ports)? {
        let entry = entry?;
        match fs::read_to_string(entry.path().join("name")) {
            Ok(found) if found.trim_end() == name => {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
            Ok(_) => {}
            // A console has no name.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("there is no port {name:?}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_from_what_its_driver_has() {
        let folder = tempfile::tempdir().unwrap();
        let driver = folder.path().join("virtio_console");
        assert!(!have_device(&driver).unwrap());
        fs::create_dir(&driver).unwrap();
        for file in ["bind", "uevent", "unbind"] {
            fs::write(driver.join(file), "").unwrap();
        }
        assert!(!have_device(&driver).unwrap());
        fs::create_dir(driver.join("virtio2")).unwrap();
        assert!(have_device(&driver).unwrap());
    }

    #[test]
    fn a_port_is_found_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "other\n"), ("vport1p2", "mine\n")] {
            fs::create_dir(folder.path().join(port)).unwrap();
            fs::write(folder.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(folder.path().join("vport0p0")).unwrap();
        let found = find(folder.path(), "mine").unwrap();
        assert_eq!(found, Path::new("/dev/vport1p2"));
        let none = find(folder.path(), "yours").unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
