//! Files as this version and others wrote them, and what is none.

use crate::tracker::persist::tests::*;

/// What the recorded files hold.
fn recorded() -> Vec<SavedSocket> {
    let socket = |n: u64, phase, since| SavedSocket {
        cookie: n,
        flow: flow(n),
        netns: HERE,
        port: 80,
        side: Side::Server,
        role: Role::Passive,
        phase,
        kind: SocketKind::Socket,
        counted: false,
        since,
    };
    vec![
        socket(1, Phase::CloseWait, EnteredAt::exact(T0)),
        socket(2, Phase::LastAck, EnteredAt { earliest_ns: 0, latest_ns: T0 + S }),
        SavedSocket {
            cookie: 0,
            side: Side::Unknown,
            ..socket(3, Phase::CloseWait, EnteredAt::exact(T0 + 2 * S))
        },
        SavedSocket {
            side: Side::Client,
            role: Role::Active,
            kind: SocketKind::Minisocket,
            port: 40_004,
            counted: true,
            flow: Flow::new("[2001:db8::1]:40004".parse().unwrap(), "[2001:db8::2]:443".parse().unwrap()),
            ..socket(4, Phase::FinWait2, EnteredAt::exact(T0 + 3 * S))
        },
    ]
}

fn sorted(former: &SavedState) -> Vec<SavedSocket> {
    let mut sockets: Vec<SavedSocket> = former.sockets().copied().collect();
    sockets.sort_by_key(|saved| (saved.since.latest_ns, saved.cookie));
    sockets
}

const FORMAT_1: &[u8] = include_bytes!("../../../../tests/state/format-1");
const TO_COME: &[u8] = include_bytes!("../../../../tests/state/format-2-to-come");
const UNTIL: u64 = T0 + 9 * S;

#[test]
fn files_of_every_version_so_far_are_read() {
    let former = state_format::read(FORMAT_1, BOOT, T0 + 10 * S).unwrap();
    assert_eq!((sorted(&former), former.until_ns()), (recorded(), UNTIL));
    // Whoever changes what is written counts up FORMAT and records another file; this one stays.
    if FORMAT == 1 {
        assert_eq!(state_format::write(BOOT, &recorded(), UNTIL), FORMAT_1);
    }
}

#[test]
fn a_later_versions_file_is_read_for_what_this_one_knows() {
    let former = state_format::read(TO_COME, BOOT, T0 + 10 * S).unwrap();
    assert_eq!((sorted(&former), former.until_ns()), (recorded(), UNTIL));
}

#[test]
fn a_file_of_no_use_is_refused_and_says_why() {
    let read = |bytes: &[u8]| state_format::read(bytes, BOOT, T0 + 10 * S).map(|former| former.len());
    assert_eq!(read(FORMAT_1), Ok(4));
    let other = "11111111-2222-3333-4444-555555555555";
    assert_eq!(state_format::read(FORMAT_1, other, T0 + 10 * S).err(), Some(UnusableState::OtherBoot));
    assert_eq!(state_format::read(FORMAT_1, "", T0 + 10 * S).err(), Some(UnusableState::OtherBoot));
    assert!(
        matches!(state_format::read(FORMAT_1, BOOT, T0 + 8 * S), Err(UnusableState::Corrupt(why)) if why.contains("future"))
    );
    for bytes in
        [&b""[..], b"tcpclose", b"\x7fELF, and something longer than a header would be, with more behind it"]
    {
        assert!(matches!(read(bytes), Err(UnusableState::Corrupt(_))));
    }
    // Any bit that flips is noticed, but in a torn end.
    for at in 0..FORMAT_1.len() {
        let mut bytes = FORMAT_1.to_vec();
        bytes[at] ^= 1 << (at % 8);
        assert!(matches!(read(&bytes), Err(UnusableState::Corrupt(_))), "byte {at}");
    }
    // Cut anywhere, it is a torn end or, within the header, corrupt. Nothing panics.
    for length in 0..FORMAT_1.len() {
        match read(&FORMAT_1[..length]) {
            Ok(n) => assert_eq!(n, 0, "{length}"),
            Err(why) => assert!(matches!(why, UnusableState::Corrupt(_)), "{length}: {why}"),
        }
    }
    let mut dice = Dice(7);
    for _ in 0..2_000 {
        let noise: Vec<u8> = (0..dice.below(200)).map(|_| dice.below(256) as u8).collect();
        assert!(read(&noise).is_err());
    }
}

#[test]
fn a_file_that_needs_a_later_reader_says_so() {
    let mut bytes = FORMAT_1.to_vec();
    bytes[8..12].copy_from_slice(&[3, 0, 2, 0]);
    let sum = crc32fast::hash(&bytes[..50]).to_le_bytes();
    bytes[50..54].copy_from_slice(&sum);
    let refused = state_format::read(&bytes, BOOT, T0 + 10 * S).err();
    assert_eq!(refused, Some(UnusableState::TooNew(3)));
    assert!(refused.unwrap().to_string().contains("later version"));
}
