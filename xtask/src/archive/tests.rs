use super::files::complaint;
use super::*;

#[test]
fn the_mirror_is_where_the_host_has_debian_from() {
    let os = "ID=debian\nVERSION_CODENAME=bookworm\n";
    let listed = "http://s/security/ bookworm-security Debian:Debian-Security\nhttp://m/debian/ bookworm \
                  Debian:Debian\n";
    assert_eq!(mirror_in(listed, os), Some("http://m/debian/"));
    // Before the first `apt-get update`, apt knows no labels.
    let fresh = "http://s/security/ bookworm-security $(ORIGIN):$(LABEL)\nhttp://m/debian/ bookworm \
                 $(ORIGIN):$(LABEL)\n";
    assert_eq!(mirror_in(fresh, os), Some("http://m/debian/"));
    // A derivative names its releases itself.
    assert_eq!(mirror_in("http://u/ noble Ubuntu:Ubuntu\n", "ID=ubuntu\nVERSION_CODENAME=noble\n"), None);
    assert_eq!(mirror_in("", os), None);
}

#[test]
fn backports_come_with_the_release_they_were_made_for() {
    assert_eq!(Suite::TrixieBackports.sources(), ["trixie", "trixie-backports"]);
    assert_eq!(Suite::Sid.sources(), ["sid"]);
}

#[test]
fn files_are_listed_with_their_sums() {
    let file = Listed::parse("'http://m/pool/a_1%2b1_amd64.deb' a_1+1_amd64.deb 7 SHA256:00ff").unwrap();
    assert_eq!(file.name, "a_1+1_amd64.deb");
    assert_eq!(file.sum, ("sha256sum", "00ff".to_owned()));
    // MD5 proves nothing.
    assert_eq!(Listed::parse("'http://m/a.deb' a.deb 7 MD5Sum:00ff"), None);
    assert_eq!(Listed::parse("Reading package lists..."), None);
}

#[test]
fn what_apt_complains_of_is_one_line() {
    let printed =
        "W: a warning\nE: Failed to fetch http://m/ Could not resolve 'm'\nE: Some index files failed\n";
    assert_eq!(complaint(printed), Some("Failed to fetch http://m/ Could not resolve 'm'"));
    assert_eq!(
        complaint("dpkg: warning\ntar: No space left on device\n\n"),
        Some("tar: No space left on device")
    );
    assert_eq!(complaint(""), None);
}

/// A folder of this test, removed when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
#[ignore = "fetches packages"]
fn packages_are_unpacked_whole_whatever_an_earlier_run_left() {
    let archive = Archive::open(Suite::Trixie, Architecture::Arm64).unwrap();
    let folder = Folder(archive.folder.join("test"));
    let unpacked = folder.0.join("hello");
    // One that was interrupted, and a download that is damaged though its size is right.
    fs::create_dir_all(folder.0.join("hello.partial/usr/left")).unwrap();
    let [file] = &archive.fetch(&["download", "hello"]).unwrap()[..] else { panic!("one package, one file") };
    let mut content = fs::read(archive.file(file)).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(archive.file(file), &content).unwrap();

    archive.unpack(&["hello"], &unpacked).unwrap();
    assert!(unpacked.join("usr/bin/hello").is_file());
    assert!(!unpacked.join("usr/left").exists() && !folder.0.join("hello.partial").exists());
    assert!(Archive::is_unpacked(&["hello"], &unpacked) && !Archive::is_unpacked(&["bash"], &unpacked));
    // It is for the machine that was asked for: e_machine 183.
    let program = fs::read(unpacked.join("usr/bin/hello")).unwrap();
    assert_eq!(program[18..20], 183u16.to_le_bytes());

    // Bookworm's packages have /lib beside /usr/lib: what a merged /usr makes of both.
    let archive = Archive::open(Suite::Bookworm, Architecture::Arm64).unwrap();
    let closure = folder.0.join("closure");
    archive.unpack_closure(&["hello"], &closure).unwrap();
    assert!(closure.join("usr/bin/hello").is_file());
    assert!(closure.join("lib").is_symlink() && closure.join("usr/lib/aarch64-linux-gnu/libc.so.6").exists());
    let why = archive.unpack(&["no-such-package"], &unpacked).unwrap_err();
    assert!(format!("{why:#}").contains("Unable to locate package no-such-package"), "{why:#}");
    // What was there stays.
    assert!(unpacked.join("usr/bin/hello").is_file());
}
