//! The only place that reads sockets; it also holds the offsets of all kernel structs.
//!
//! Offsets come from [`LAYOUT`]. How a load is made differs by backend: behind tp_btf the verifier knows the type of the
//! pointer and allows plain loads; behind the classic tracepoint every load is a `bpf_probe_read_kernel`.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf, bpf_get_socket_cookie,
    bpf_probe_read_kernel,
};
use tcpclose_common::event::{HeaderDetail, Numbers, Words, flags};
use tcpclose_common::layout::Layout;
use tcpclose_common::state::{TcpState, is_in};

/// Written by the agent before the load; frozen read-only after it, and so constants to the verifier.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNRESOLVED;

/// An offset, read so that the compiler cannot fold the zero above into the code.
#[inline(always)]
pub fn offset(field: &'static u32) -> usize {
    // SAFETY: a plain integer; the agent writes it before the program exists, and nobody after.
    unsafe { core::ptr::from_ref(field).read_volatile() as usize }
}

/// Whether the offsets are known.
#[inline(always)]
pub fn resolved() -> bool {
    offset(&LAYOUT.resolved) != 0
}

const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_MPTCP: u16 = 262;

/// `enum sock_flags` (include/net/sock.h, 5.8 to 6.18).
const SOCK_DEAD: u64 = 1 << 0;
const SOCK_DONE: u64 = 1 << 1;
const SOCK_LINGER: u64 = 1 << 4;
/// `SK_FORCE_REUSE` (include/net/sock.h, 5.8 to 6.18), which only `TCP_REPAIR` sets (net/ipv4/tcp.c,
/// do_tcp_setsockopt()).
const FORCE_REUSE: u8 = 2;
/// include/net/sock.h.
const RCV_SHUTDOWN: u8 = 1;

/// How a backend loads from kernel memory.
pub trait Load {
    /// # Safety
    /// `base` points to a kernel struct that has a `T` at `offset`.
    unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T;

    /// The current task, as this backend can load from it.
    fn task() -> *const u8;
}

/// Plain loads through a pointer whose type the verifier knows.
pub struct Typed;

impl Load for Typed {
    // SAFETY: what the caller promises is the trait's.
    #[inline(always)]
    unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
        // SAFETY: the caller's promise, and the verifier's own check of type, offset and size. Volatile, so that the
        // compiler neither merges nor widens the load into one that the type does not have.
        unsafe { base.add(offset).cast::<T>().read_volatile() }
    }

    /// Linux ≥ 5.11; this backend's cookies are younger.
    #[inline(always)]
    fn task() -> *const u8 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_current_task_btf() as *const u8 }
    }
}

/// Loads by helper, for an address that is a number to the verifier.
pub struct Copied;

impl Load for Copied {
    // SAFETY: what the caller promises is the trait's.
    #[inline(always)]
    unsafe fn load<T: Copy>(base: *const u8, offset: usize) -> T {
        let mut value = MaybeUninit::<T>::zeroed();
        // SAFETY: the helper checks the address itself, and writes zeroes where it cannot be read
        // (bpf_probe_read_kernel_common(), kernel/trace/bpf_trace.c, 5.8 to 6.18). All types loaded here are integers, for
        // which zero is a value. What the helper returns is not looked at: two ways a load are ten thousands of paths to the
        // verifier, which took it 18 s of 28 in an emulated 5.10.
        unsafe {
            bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, base.add(offset).cast());
            value.assume_init()
        }
    }

    #[inline(always)]
    fn task() -> *const u8 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_current_task() as *const u8 }
    }
}

/// What is read from a socket at one step. See [`tcpclose_common::event::RecordHeader`] for the fields.
pub struct SocketFields {
    pub flags: u16,
    pub netns: u32,
    pub detail: HeaderDetail,
    pub numbers: Numbers,
}

impl SocketFields {
    /// Nothing is known: a kernel without BTF.
    pub const NONE: Self =
        Self { flags: 0, netns: 0, detail: HeaderDetail::NONE, numbers: Numbers { snd: 0, rcv: 0 } };
}

/// Where `skc_state` is in a sock_common.
#[inline(always)]
pub fn state_offset() -> usize {
    offset(&LAYOUT.skc_state)
}

/// Where `tw_substate` is in a minisocket.
#[inline(always)]
pub fn substate_offset() -> usize {
    offset(&LAYOUT.tw_substate)
}

/// Where `tw_timer` is in a minisocket.
#[inline(always)]
pub fn timer_offset() -> usize {
    offset(&LAYOUT.tw_timer)
}

/// The process that runs now; `None` for a kernel thread, to which the last reference to a file can fall (fs/file_table.c,
/// `delayed_fput()`).
#[inline(always)]
pub fn current_process<L: Load>() -> Option<u32> {
    /// include/linux/sched.h, 5.8 to 6.18.
    const PF_KTHREAD: u32 = 0x0020_0000;
    // SAFETY: the current task lives; a helper without arguments.
    let (flags, pid_tgid) =
        unsafe { (L::load::<u32>(L::task(), offset(&LAYOUT.task_flags)), bpf_get_current_pid_tgid()) };
    (flags & PF_KTHREAD == 0).then_some((pid_tgid >> 32) as u32)
}

/// The cookie that a socket or minisocket has; 0 if nobody has asked for one.
///
/// # Safety
/// `common` begins with a sock_common.
#[inline(always)]
pub unsafe fn cookie<L: Load>(common: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { L::load(common, offset(&LAYOUT.skc_cookie)) }
}

/// The cookie of a full socket, which it gets here if it has none. For tp_btf programs since 5.12.
///
/// # Safety
/// `sk` is the tracepoint's own socket.
#[inline(always)]
pub unsafe fn cookie_or_new(sk: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match cookie::<Typed>(sk) {
            0 => bpf_get_socket_cookie(sk.cast_mut().cast()),
            known => known,
        }
    }
}

/// What identifies the network namespace: see [`Layout::net_id`].
///
/// # Safety
/// `common` begins with a sock_common.
#[inline(always)]
pub unsafe fn netns<L: Load>(common: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { of_netns::<L>(common, offset(&LAYOUT.net_id)) }
}

/// `ns.inum` of the network namespace.
///
/// # Safety
/// `common` begins with a sock_common.
#[inline(always)]
pub unsafe fn netns_inum<L: Load>(common: *const u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { of_netns::<L>(common, offset(&LAYOUT.net_inum)) }
}

/// # Safety
/// `common` begins with a sock_common; a struct net has 32 bits at `at`.
#[inline(always)]
unsafe fn of_netns<L: Load>(common: *const u8, at: usize) -> u32 {
    // SAFETY: the caller's promise; skc_net points to a struct net for as long as the socket lives.
    unsafe {
        let net: *const u8 = L::load(common, offset(&LAYOUT.skc_net));
        if net.is_null() { 0 } else { L::load(net, at) }
    }
}

/// Where `tw_rcv_nxt` is in a minisocket.
#[inline(always)]
pub fn tw_rcv_nxt_offset() -> usize {
    offset(&LAYOUT.skc_tw_rcv_nxt)
}

/// Local and remote port, host order, of a minisocket or a socket that still has its port.
///
/// # Safety
/// `common` begins with a sock_common.
#[inline(always)]
pub unsafe fn common_ports<L: Load>(common: *const u8) -> (u16, u16) {
    // SAFETY: the caller's promise.
    unsafe {
        let remote: u16 = L::load(common, offset(&LAYOUT.skc_dport));
        (L::load(common, offset(&LAYOUT.skc_num)), u16::from_be(remote))
    }
}

/// `sk->sk_protocol`, a u16 since 5.6.
///
/// # Safety
/// `sk` is a full struct sock.
#[inline(always)]
pub unsafe fn protocol<L: Load>(sk: *const u8) -> u16 {
    // SAFETY: `sk` is a struct sock.
    unsafe { L::load(sk, offset(&LAYOUT.sk_protocol)) }
}

/// Whether the socket has a backlog: that of a listener, or what it has inherited from one.
///
/// # Safety
/// `sk` is a full struct sock.
#[inline(always)]
pub unsafe fn has_backlog<L: Load>(sk: *const u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { L::load::<u32>(sk, offset(&LAYOUT.sk_max_ack_backlog)) != 0 }
}

/// Whether the socket was put in repair mode, as nothing has set SO_REUSEADDR since.
///
/// # Safety
/// `common` begins with a sock_common.
#[inline(always)]
pub unsafe fn is_forced_to_reuse<L: Load>(common: *const u8) -> bool {
    // SAFETY: the caller's promise.
    unsafe { bits::<L>(common, offset(&LAYOUT.skc_reuse)) & 0xf == FORCE_REUSE }
}

/// The bit field at `at` (in bits), and more significant bits behind it.
///
/// # Safety
/// `base` points to a kernel struct that has a bit field there.
#[inline(always)]
unsafe fn bits<L: Load>(base: *const u8, at: usize) -> u8 {
    // SAFETY: the caller's promise.
    let byte: u8 = unsafe { L::load(base, at / 8) };
    byte >> (at % 8)
}

/// The bytes that were acknowledged and never sent, at a moment when this side's FIN is not sent: a SYN of this
/// side is one. What that proves of the opening, and why, is in the agent's `names/opening.rs`.
///
/// # Safety
/// `tcp` is a live struct tcp_sock.
#[inline(always)]
pub unsafe fn acknowledged_unsent<L: Load>(tcp: *const u8) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        let acked: u64 = L::load(tcp, offset(&LAYOUT.bytes_acked));
        let sent: u64 = L::load(tcp, offset(&LAYOUT.bytes_sent));
        let sent_again: u64 = L::load(tcp, offset(&LAYOUT.bytes_retrans));
        let snd_una: u32 = L::load(tcp, offset(&LAYOUT.snd_una));
        let snd_nxt: u32 = L::load(tcp, offset(&LAYOUT.snd_nxt));
        let under_way = u64::from(snd_nxt.wrapping_sub(snd_una));
        acked.wrapping_add(under_way).wrapping_add(sent_again).wrapping_sub(sent) as i64
    }
}

/// Whether the socket is a subflow of an MPTCP connection.
///
/// # Safety
/// `tcp` is a live struct tcp_sock.
#[inline(always)]
unsafe fn is_subflow<L: Load>(tcp: *const u8) -> bool {
    let at = offset(&LAYOUT.is_mptcp);
    // SAFETY: the caller's promise; a bool is read as the byte that it is.
    at != 0 && unsafe { L::load::<u8>(tcp, at) } != 0
}

/// The states at whose entry [`Numbers::snd`] is `write_seq`.
const FIN_TAKES_NEXT: u32 = TcpState::FinWait1.bit() | TcpState::LastAck.bit() | TcpState::CloseWait.bit();

/// Reads what decides role, side and outcome, at a step into the state `new`; what decides the outcome is read only at a step
/// to CLOSE, since a load is a helper call at one backend. `tcp` is the same socket as a `struct tcp_sock`.
///
/// # Safety
/// Both pointers are to the live socket of the tracepoint; [`resolved`] is true.
#[inline(always)]
pub unsafe fn facts<L: Load>(sk: *const u8, tcp: *const u8, new: u32) -> SocketFields {
    let closing = new == TcpState::Close as u32;
    // SAFETY: the offsets are of struct sock, struct net and struct tcp_sock in this kernel's own BTF.
    unsafe {
        let sk_flags: u64 = if closing { L::load(sk, offset(&LAYOUT.sk_flags)) } else { 0 };
        let shutdown: u8 = if closing { L::load(sk, offset(&LAYOUT.sk_shutdown)) } else { 0 };
        let owned: i32 = L::load(sk, offset(&LAYOUT.sk_lock_owned));
        let linger: u64 = if closing { L::load(sk, offset(&LAYOUT.sk_lingertime)) } else { 1 };
        let linger2: i32 = if closing { L::load(tcp, offset(&LAYOUT.linger2)) } else { 0 };
        let in_repair = closing && bits::<L>(tcp, offset(&LAYOUT.repair)) & 1 != 0;
        let snd_una: u32 = L::load(tcp, offset(&LAYOUT.snd_una));
        let write_seq: u32 = L::load(tcp, offset(&LAYOUT.write_seq));
        let rcv_nxt: u32 = L::load(tcp, offset(&LAYOUT.rcv_nxt));
        let err: i32 = if closing { L::load(sk, offset(&LAYOUT.sk_err)) } else { 0 };
        let err_soft: i32 = if closing { L::load(sk, offset(&LAYOUT.sk_err_soft)) } else { 0 };
        let when = |fact: bool, flag: u16| if fact { flag } else { 0 };
        SocketFields {
            flags: flags::FACTS
                | when(has_backlog::<L>(sk), flags::ACCEPTED)
                | when(owned != 0, flags::OWNED)
                | when(sk_flags & SOCK_DONE != 0, flags::DONE)
                | when(sk_flags & SOCK_DEAD != 0, flags::DEAD)
                | when(shutdown & RCV_SHUTDOWN != 0, flags::RCV_SHUTDOWN)
                | when(sk_flags & SOCK_LINGER != 0 && linger == 0, flags::LINGER_0)
                | when(linger2 < 0, flags::LINGER2_NEGATIVE)
                | when(in_repair, flags::REPAIR)
                | when(snd_una == write_seq, flags::FIN_ACKED),
            netns: netns::<L>(sk),
            detail: if new == TcpState::CloseWait as u32 {
                HeaderDetail::of_subflow(is_subflow::<L>(tcp))
            } else {
                HeaderDetail::of_errors(err as u16, err_soft as u16)
            },
            numbers: Numbers {
                snd: if is_in(new, FIN_TAKES_NEXT) { write_seq } else { snd_una },
                rcv: rcv_nxt,
            },
        }
    }
}

/// Local and remote port, host order. `inet_sport` rather than `skc_num`, which is 0 at →CLOSE: the port was given
/// back before (net/ipv4/tcp.c, tcp_set_state: inet_put_port comes before inet_sk_state_store).
///
/// # Safety
/// As [`facts`].
#[inline(always)]
pub unsafe fn ports<L: Load>(sk: *const u8, tcp: *const u8) -> (u16, u16) {
    // SAFETY: as in `facts`.
    unsafe {
        let local: u16 = L::load(tcp, offset(&LAYOUT.inet_sport));
        let remote: u16 = L::load(sk, offset(&LAYOUT.skc_dport));
        (u16::from_be(local), u16::from_be(remote))
    }
}

/// Local and remote address, IPv4 as v4-mapped IPv6.
///
/// # Safety
/// As [`facts`].
#[inline(always)]
pub unsafe fn addresses<L: Load>(sk: *const u8) -> (Words, Words) {
    // SAFETY: as in `facts`.
    unsafe {
        let family: u16 = L::load(sk, offset(&LAYOUT.skc_family));
        if family == AF_INET6 {
            (v6::<L>(sk, offset(&LAYOUT.skc_v6_rcv_saddr)), v6::<L>(sk, offset(&LAYOUT.skc_v6_daddr)))
        } else {
            let local: u32 = L::load(sk, offset(&LAYOUT.skc_rcv_saddr));
            let remote: u32 = L::load(sk, offset(&LAYOUT.skc_daddr));
            // ::ffff:a.b.c.d
            let mapped = |address| [0, 0, 0x0000_ffff_u32.to_be(), address];
            (mapped(local), mapped(remote))
        }
    }
}

/// # Safety
/// `sk` has an in6_addr at `at`.
#[inline(always)]
unsafe fn v6<L: Load>(sk: *const u8, at: usize) -> Words {
    // SAFETY: the caller's promise; in6_addr is an array of four u32 to the verifier too.
    unsafe { [L::load(sk, at), L::load(sk, at + 4), L::load(sk, at + 8), L::load(sk, at + 12)] }
}

/// The record of the classic tracepoint.
pub mod classic {
    use core::mem::MaybeUninit;

    use aya_ebpf::EbpfContext;
    use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
    use aya_ebpf::programs::TracePointContext;
    use tcpclose_common::event::Words;
    use tcpclose_common::layout::RecordLayout;

    use super::offset;

    /// Written by the agent before the load, from the tracepoint's format; a constant to the verifier, as [`super::LAYOUT`].
    #[unsafe(no_mangle)]
    static RECORD: RecordLayout = RecordLayout::MAINLINE;

    /// Whether the record is laid out as in mainline.
    #[inline(always)]
    pub fn is_mainline() -> bool {
        offset(&RECORD.is_mainline) != 0
    }

    /// How the record's fields are read.
    pub trait RecordFields {
        /// The offset of a field.
        fn at(field: fn(&RecordLayout) -> &u32) -> usize;

        /// # Safety
        /// The record has a `T` at `at`.
        unsafe fn load<T: Copy>(ctx: &TracePointContext, at: usize) -> T;
    }

    /// In place, at mainline's offsets: the verifier takes only an instruction's own offset to a context
    /// (kernel/bpf/verifier.c, check_ctx_reg, 5.8; __check_ptr_off_reg, 6.18).
    pub struct InPlace;

    impl RecordFields for InPlace {
        #[inline(always)]
        fn at(field: fn(&RecordLayout) -> &u32) -> usize {
            *field(&RecordLayout::MAINLINE) as usize
        }

        // SAFETY: what the caller promises is the trait's.
        #[inline(always)]
        unsafe fn load<T: Copy>(ctx: &TracePointContext, at: usize) -> T {
            // SAFETY: the context of a tracepoint program is its record; the verifier holds the offset and the size against
            // the record's (kernel/trace/bpf_trace.c, tp_prog_is_valid_access).
            unsafe { ctx.as_ptr().cast::<u8>().add(at).cast::<T>().read_volatile() }
        }
    }

    /// Copied, at the offsets that tracefs told.
    pub struct ByFormat;

    impl RecordFields for ByFormat {
        #[inline(always)]
        fn at(field: fn(&RecordLayout) -> &u32) -> usize {
            offset(field(&RECORD))
        }

        // SAFETY: what the caller promises is the trait's.
        #[inline(always)]
        unsafe fn load<T: Copy>(ctx: &TracePointContext, at: usize) -> T {
            let mut value = MaybeUninit::<T>::zeroed();
            // SAFETY: the record is kernel memory, and the helper checks the address: see `super::Copied`.
            unsafe {
                let from = ctx.as_ptr().cast::<u8>().add(at);
                bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, from.cast());
                value.assume_init()
            }
        }
    }

    /// The states that it leads from and to.
    #[inline(always)]
    pub fn step<F: RecordFields>(ctx: &TracePointContext) -> (u32, u32) {
        // SAFETY: fields of these sizes, as the agent has checked.
        unsafe {
            (F::load(ctx, F::at(|record| &record.oldstate)), F::load(ctx, F::at(|record| &record.newstate)))
        }
    }

    /// The socket's protocol.
    #[inline(always)]
    pub fn protocol<F: RecordFields>(ctx: &TracePointContext) -> u16 {
        // SAFETY: as in `step`.
        unsafe { F::load(ctx, F::at(|record| &record.protocol)) }
    }

    /// The socket's address.
    #[inline(always)]
    pub fn sk<F: RecordFields>(ctx: &TracePointContext) -> u64 {
        // SAFETY: as in `step`.
        unsafe { F::load(ctx, F::at(|record| &record.skaddr)) }
    }

    /// Local and remote port, host order.
    #[inline(always)]
    pub fn ports<F: RecordFields>(ctx: &TracePointContext) -> (u16, u16) {
        // SAFETY: as in `step`.
        unsafe { (F::load(ctx, F::at(|record| &record.sport)), F::load(ctx, F::at(|record| &record.dport))) }
    }

    /// Local and remote address. The record's IPv6 fields hold IPv4 addresses too, v4-mapped
    /// (include/trace/events/sock.h, TP_STORE_ADDRS, 5.8 to 6.18).
    #[inline(always)]
    pub fn addresses<F: RecordFields>(ctx: &TracePointContext) -> (Words, Words) {
        // SAFETY: as in `step`: 16 bytes.
        let address = |at: usize| unsafe {
            [F::load(ctx, at), F::load(ctx, at + 4), F::load(ctx, at + 8), F::load(ctx, at + 12)]
        };
        (address(F::at(|record| &record.saddr_v6)), address(F::at(|record| &record.daddr_v6)))
    }
}
