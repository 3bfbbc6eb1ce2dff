extern crate std;
use super::*;
use std::vec::Vec;

fn bytes<T: Copy>(value: &T) -> Vec<u8> {
    // SAFETY: the records are repr(C), Copy, and have no padding (their sizes are asserted above).
    unsafe { std::slice::from_raw_parts((value as *const T).cast::<u8>(), size_of::<T>()) }.to_vec()
}

fn open() -> OpenRecord {
    OpenRecord {
        head: RecordHeader {
            key: 0x1122_3344_5566_7788,
            time_ns: 0x99aa_bbcc_ddee_ff00,
            local_port: 443,
            remote_port: 51000,
            old: 1,
            new: 8,
            flags: flags::OPEN | flags::COOKIE,
            netns: 0xf000_0001,
            detail: HeaderDetail::of_errors(104, 110),
        },
        numbers: Numbers { snd: 0xfedc_ba98, rcv: 7 },
        local: [1, 2, 3, 0x8000_0004],
        remote: [5, 6, 7, 0xf000_0008],
        inum: 0xf000_0002,
        spare: 0,
    }
}

#[test]
fn what_the_probe_writes_is_what_the_agent_reads() {
    let open = open();
    assert_eq!(Record::decode(&bytes(&open)), Some(Record::Open(open)));
    let step = StepRecord {
        head: RecordHeader { old: 5, new: 7, flags: flags::COOKIE, ..open.head },
        numbers: Numbers { snd: 0x89ab_cdef, rcv: 0x0123_4567 },
    };
    assert_eq!(Record::decode(&bytes(&step)), Some(Record::Step(step, 0)));
    let flow = 0x1357_9bdf_0246_8ace;
    assert_eq!(Record::decode(&bytes(&FlowStepRecord { step, flow })), Some(Record::Step(step, flow)));
}

#[test]
fn a_closer_is_read_as_it_was_written() {
    let mut head = open().head;
    assert_eq!(head.closer(), None);
    for pid in [1, 0xffff, 0x1_0000, 4_194_304, u32::MAX] {
        head.set_closer(pid);
        assert_eq!(head.closer(), Some(pid));
    }
}

#[test]
fn linger_0_is_one_at_a_close_of_the_program() {
    use flags::{FACTS, LINGER_0, OWNED, RCV_SHUTDOWN};
    let with = |new, flags| RecordHeader { new, flags, ..open().head };
    let all = FACTS | OWNED | RCV_SHUTDOWN | LINGER_0;
    assert!(with(7, all).is_linger_0() && with(7, all).closer().is_none());
    assert!(!with(4, all).is_linger_0() && with(4, all).closer().is_some());
    // connect(AF_UNSPEC), and a child that closes with its listener.
    assert!(!with(7, all & !RCV_SHUTDOWN).is_linger_0() && !with(7, all & !OWNED).is_linger_0());
}

#[test]
fn a_hook_record_is_distinguished_from_a_step() {
    let subject = SocketOrRcvNxt::of_socket(9);
    for kind in HookKind::ALL {
        let detail = HeaderDetail::of_hook(kind);
        let head = RecordHeader { detail, old: 6, new: 7, flags: flags::HOOK, ..open().head };
        let hook = HookRecord { head, subject };
        assert_eq!(Record::decode(&bytes(&hook)), Some(Record::Hook(hook, kind)));
    }
    let detail = HeaderDetail::of_errors(99, 0);
    let head = RecordHeader { detail, flags: flags::HOOK, ..open().head };
    assert_eq!(Record::decode(&bytes(&HookRecord { head, subject })), None);
    // Its length is a hook record's and no other's.
    let step = StepRecord { head: RecordHeader { old: 5, new: 7, ..head }, numbers: Numbers::default() };
    assert_eq!(Record::decode(&bytes(&FlowStepRecord { step, flow: 1 })), None);
}

#[test]
fn a_step_of_an_mptcp_socket_is_into_close_wait_or_out_of_it() {
    let step = |old, new, more| {
        let head = RecordHeader { old, new, flags: flags::HOOK | more, ..open().head };
        OpenRecord { head, ..open() }
    };
    for (old, new) in [(1, 8), (8, 9), (8, 7)] {
        let of_mptcp = step(old, new, flags::OPEN);
        assert_eq!(Record::decode(&bytes(&of_mptcp)), Some(Record::Mptcp(of_mptcp)), "{old} → {new}");
        assert!(!of_mptcp.head.is_subflow());
    }
    for (old, new, more) in [(1, 4, flags::OPEN), (8, 8, flags::OPEN), (1, 8, 0), (77, 8, flags::OPEN)] {
        assert_eq!(Record::decode(&bytes(&step(old, new, more))), None, "{old} → {new}");
    }
}

#[test]
fn a_subflow_is_one_at_its_step_into_close_wait() {
    let with = |new, flags, detail| RecordHeader { new, flags, detail, ..open().head }.is_subflow();
    let yes = HeaderDetail::of_subflow(true);
    assert!(with(8, flags::FACTS, yes) && !with(8, flags::FACTS, HeaderDetail::of_subflow(false)));
    // Elsewhere it is an error or a PID, or nothing was read.
    assert!(!with(7, flags::FACTS, yes) && !with(8, 0, yes) && !with(8, flags::FACTS | flags::HOOK, yes));
}

#[test]
fn short_long_and_garbage_records_are_refused() {
    let good = bytes(&open());
    for len in 0..200 {
        let cut: Vec<u8> = good.iter().copied().cycle().take(len).collect();
        assert_eq!(Record::decode(&cut).is_some(), len == size_of::<OpenRecord>(), "{len}");
    }
    let kind_disagrees = OpenRecord { head: RecordHeader { flags: 0, ..open().head }, ..open() };
    assert_eq!(Record::decode(&bytes(&kind_disagrees)), None);
    for (old, new) in [(1, 1), (0, 4), (77, 4), (1, 200), (10, 7), (5, 7)] {
        let bad = OpenRecord { head: RecordHeader { old, new, ..open().head }, ..open() };
        assert_eq!(Record::decode(&bytes(&bad)), None, "{old} → {new}");
    }
}

#[test]
fn a_flow_hash_tells_ends_and_ports_apart() {
    let (a, b) = ([1; 4], [2; 4]);
    let base = flow_hash(&a, &b, 1, 2);
    assert_ne!(base, flow_hash(&b, &a, 1, 2));
    assert_ne!(base, flow_hash(&a, &b, 2, 1));
    let mut seen: Vec<u64> =
        (0..=u16::MAX).flat_map(|p| [flow_hash(&a, &b, p, 80), flow_hash(&a, &b, 80, p)]).collect();
    seen.sort_unstable();
    seen.dedup();
    // Port 80 against port 80 comes twice.
    assert_eq!(seen.len(), 2 * 65536 - 1);
}
