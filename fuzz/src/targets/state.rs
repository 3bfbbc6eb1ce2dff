//! The state file. Its checksums are made to fit, since no fuzzer guesses one: the first byte says of which parts.

use tcpclose::tracker::saved::SavedSocket;
use tcpclose::tracker::state_format;
use tcpclose::tracker::{HostParameters, Tracker};

use super::Bytes;

const BOOT: &str = "11111111-2222-3333-4444-555555555555";
const NOW_NS: u64 = 1 << 61;

/// Reads one, writes what it said, and reads that.
pub fn read(bytes: &[u8]) {
    let mut rest = Bytes(bytes);
    let mut file = rest.take(1).first().map(|_| rest.0.to_vec()).unwrap_or_default();
    let fit = bytes.first().copied().unwrap_or(0);
    if fit & 1 == 0 {
        make_fit(&mut file);
    }
    let Ok(former) = state_format::read(&file, BOOT, NOW_NS) else { return };
    for saved in former.sockets() {
        assert!(
            saved.since.earliest_ns <= saved.since.latest_ns && saved.since.latest_ns <= NOW_NS,
            "{saved:?}"
        );
    }
    assert!(former.until_ns() <= NOW_NS);
    let sockets: Vec<SavedSocket> = former.sockets().copied().collect();
    assert_eq!((sockets.len(), sockets.is_empty()), (former.len(), former.is_empty()));
    let again =
        match state_format::read(&state_format::write(BOOT, &sockets, former.until_ns()), BOOT, NOW_NS) {
            Ok(again) => again,
            Err(why) => panic!("{why}: {sockets:?}"),
        };
    assert_eq!(again.len(), sockets.len());
    assert!(sockets.iter().all(|saved| again.sockets().any(|other| other == saved)));
    let host = HostParameters { netns: 1, everywhere: true, netns_known: true, ephemeral: 32768..=60999 };
    let mut tracker = Tracker::new(host, true);
    tracker.set_former(again);
    assert!(tracker.is_empty(), "what was saved is a claim, until a dump has seen it");
}

/// Writes the boot and every checksum as they must be, where there is room for them.
fn make_fit(file: &mut [u8]) {
    let put = |file: &mut [u8], at: usize, bytes: &[u8]| {
        if let Some(place) = file.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    let sum = |file: &[u8], from: usize, to: usize| file.get(from..to).map(crc32fast::hash).unwrap_or(0);
    put(file, 0, b"tcpclose");
    put(file, 14, BOOT.as_bytes());
    let word = |file: &[u8], at: usize| -> Option<[u8; 4]> { file.get(at..at + 4)?.try_into().ok() };
    let length = file.get(12..14).map_or(0, |two| usize::from(two[0]) | usize::from(two[1]) << 8);
    let mut at = 14 + length;
    let header = sum(file, 0, at);
    put(file, at, &header.to_le_bytes());
    at += 4;
    while let Some(length) = word(file, at) {
        let length = u32::from_le_bytes(length) as usize;
        let payload = sum(file, at + 12, at + 12 + length);
        put(file, at + 4, &payload.to_le_bytes());
        let check = sum(file, at, at + 8);
        put(file, at + 8, &check.to_le_bytes());
        at += 12 + length;
    }
}
