use super::*;

fn write(disk: &SimDisk, name: &str, byte: u8) -> Arc<dyn File> {
    let file = disk.create(name).unwrap();
    file.write_at(0, &[byte; 4 * SECTOR_BYTES]).unwrap();
    file
}

#[test]
fn a_crash_keeps_what_was_synced_and_a_seeded_part_of_the_rest() {
    let image = |seed| {
        let disk = SimDisk::new(seed);
        let file = write(&disk, "a", 1);
        file.sync_data().unwrap();
        disk.sync_dir().unwrap();
        file.write_at(0, &[2; 3 * SECTOR_BYTES]).unwrap();
        disk.crash(Survival::Some(128));
        assert!(file.len().is_err(), "handles die with the power");
        let content = disk.content("a").unwrap();
        assert_eq!(content[3 * SECTOR_BYTES..], [1; SECTOR_BYTES]);
        for sector in content.chunks(SECTOR_BYTES) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is old or new");
        }
        content
    };
    assert_eq!(image(7), image(7));
    assert!((0..20).any(|seed| image(seed) != image(7)));
}

#[test]
fn names_are_lost_until_the_directory_is_synced() {
    let disk = SimDisk::new(1);
    write(&disk, "a", 1).sync_data().unwrap();
    disk.crash(Survival::None);
    assert_eq!(disk.list().unwrap(), Vec::<String>::new());
    write(&disk, "a", 1).sync_data().unwrap();
    disk.sync_dir().unwrap();
    disk.rename("a", "b").unwrap();
    disk.crash(Survival::None);
    assert_eq!(disk.list().unwrap(), ["a"]);
    disk.rename("a", "b").unwrap();
    disk.crash(Survival::All);
    assert_eq!(disk.list().unwrap(), ["b"]);
}

#[test]
fn a_killed_process_leaves_what_it_wrote_but_not_durable() {
    let disk = SimDisk::new(1);
    write(&disk, "a", 1).sync_data().unwrap();
    disk.sync_dir().unwrap();
    let file = disk.open("a").unwrap();
    file.write_at(0, &[2]).unwrap();
    disk.kill();
    assert!(file.sync_data().is_err(), "handles die with the process");
    assert_eq!(disk.content("a").unwrap()[0], 2);
    disk.crash(Survival::None);
    assert_eq!(disk.content("a").unwrap()[0], 1);
}

#[test]
fn faults_strike_where_they_were_set() {
    let disk = SimDisk::new(1);
    let file = write(&disk, "a", 1);
    file.sync_data().unwrap();
    disk.sync_dir().unwrap();
    let at = disk.counters().operations;
    disk.set_faults(Faults { error_at: Some(at), ..Faults::default() });
    assert!(file.write_at(0, &[2]).is_err());
    file.write_at(0, &[2]).unwrap();
    disk.set_faults(Faults { error_after_syncs: Some(0), ..Faults::default() });
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    disk.set_faults(Faults { lying_sync: true, ..Faults::default() });
    file.write_at(0, &[3]).unwrap();
    file.sync_data().unwrap();
    disk.crash(Survival::None);
    assert!(disk.content("a").unwrap()[0] != 3, "the sync lied");
    let at = disk.counters().operations + 1;
    disk.set_faults(Faults { power_cut_at: Some(at), ..Faults::default() });
    disk.sync_dir().unwrap();
    assert!(disk.sync_dir().is_err() && disk.list().is_err(), "the power is off");
    disk.crash(Survival::All);
    disk.rot("a", 5, 0x80);
    assert_eq!(disk.content("a").unwrap()[5], 0x81);
}

#[test]
fn a_full_disk_says_so_and_takes_what_fits() {
    let disk = SimDisk::new(1);
    let room = 8 * SECTOR_BYTES as u64;
    disk.set_faults(Faults { capacity_bytes: room, ..Faults::default() });
    let file = write(&disk, "a", 1);
    assert_eq!(disk.free_bytes().unwrap(), room / 2);
    let error = file.allocate(room + 1).unwrap_err();
    assert!(crate::files::is_full(&error));
    file.allocate(room).unwrap();
    file.write_at(room - 1, &[1]).unwrap();
    disk.remove("a").unwrap();
    assert_eq!(disk.free_bytes().unwrap(), room);
}
