//! The user's stack where an armed process opens a socket, reads the end of its stream, or writes to it after that. These
//! programs are attached only while a process is armed; the one that sees accept(), only while somebody asks for that.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_F_USER_STACK, task_struct};
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_get_stack, bpf_ktime_get_ns, bpf_probe_read_user,
    bpf_task_pt_regs,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use tcpclose_common::stack::{
    FRAMES, MOST_ARMED, MOST_STACKS, Moment, StackKey, StackRecord, WORDS, counter,
};
use tcpclose_common::state::TcpState;

use crate::sock::{self, Copied, IPPROTO_MPTCP, IPPROTO_TCP, LAYOUT, Load, Typed, offset};

/// Armed processes (`tgid`).
#[map]
static ARMED: HashMap<u32, u32> = HashMap::with_max_entries(MOST_ARMED, 0);

/// The newest stack of each moment, by socket. Memory is taken as it is needed.
#[map]
static STACKS: HashMap<StackKey, StackRecord> = HashMap::with_max_entries(MOST_STACKS, BPF_F_NO_PREALLOC);

/// Processes whose accept() is asked for (`tgid`), and the numbers of the system calls accept() (low half) and accept4().
#[map]
static ACCEPTING: HashMap<u32, u64> = HashMap::with_max_entries(MOST_ARMED, 0);

/// Where a record is made, one a moment: a program is never entered again on the same CPU while it runs, also if it is
/// preempted there (kernel/trace/bpf_trace.c, __bpf_trace_run(), `prog->active`, 5.15 to 6.18).
#[map]
static STACK_SCRATCH: PerCpuArray<StackRecord> = PerCpuArray::with_max_entries(Moment::ALL.len() as u32, 0);

#[map]
static STACK_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// include/linux/socket.h.
const MSG_PEEK: u32 = 2;

/// `TP_PROTO(const struct sock *sk, const int oldstate, const int newstate)`: connect(), and the end of a socket, whose
/// stacks go.
#[inline(always)]
pub fn opened(ctx: &BtfTracePointContext) {
    let sk: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    if new == TcpState::SynSent as i32 && old == TcpState::Close as i32 {
        // SAFETY: the tracepoint's first argument is a live struct sock; connect() runs in the caller's context.
        unsafe { take(ctx, sk, Moment::Opened) };
    } else if matches!(new as u32, FIN_WAIT_1 | LAST_ACK | CLOSE) {
        // SAFETY: as above.
        let cookie = unsafe { sock::cookie::<Typed>(sk) };
        if cookie != 0 {
            for moment in Moment::BY_COOKIE {
                let _ = STACKS.remove(StackKey::new(cookie, moment));
            }
        }
    }
}

const FIN_WAIT_1: u32 = TcpState::FinWait1 as u32;
const LAST_ACK: u32 = TcpState::LastAck as u32;
const CLOSE: u32 = TcpState::Close as u32;

/// `TP_PROTO(struct sock *sk, int ret, int flags)` of `sock_recv_length` (Linux ≥ 6.3).
#[inline(always)]
pub fn received(ctx: &BtfTracePointContext) {
    let ret: i32 = ctx.arg(1);
    let flags: i32 = ctx.arg(2);
    if ret == 0 && flags as u32 & MSG_PEEK == 0 {
        after_fin(ctx, Moment::EndRead);
    }
}

/// `TP_PROTO(struct sock *sk, int ret, int flags)` of `sock_send_length` (Linux ≥ 6.3).
#[inline(always)]
pub fn sent(ctx: &BtfTracePointContext) {
    after_fin(ctx, Moment::Written);
}

#[inline(always)]
fn after_fin(ctx: &BtfTracePointContext, moment: Moment) {
    let sk: *const u8 = ctx.arg(0);
    // SAFETY: the tracepoint's first argument is a live struct sock, in the context of its caller.
    unsafe {
        if Typed::load::<u8>(sk, sock::state_offset()) == TcpState::CloseWait.raw() {
            take(ctx, sk, moment);
        }
    }
}

/// `TP_PROTO(struct pt_regs *regs, long ret)` of `sys_exit`: a connection that was accepted has a descriptor by now, and its
/// socket no cookie yet. Runs at the end of every system call of the host.
#[inline(always)]
pub fn accepted(ctx: &BtfTracePointContext) {
    // SAFETY: a helper without arguments.
    let pid_tgid = unsafe { bpf_get_current_pid_tgid() };
    let pid = (pid_tgid >> 32) as u32;
    let Some(numbers) = ACCEPTING.get_ptr(pid) else { return };
    let regs: *const u8 = ctx.arg(0);
    let fd: i64 = ctx.arg(1);
    // SAFETY: the map's value; the tracepoint's first argument is a live struct pt_regs.
    let (numbers, number) = unsafe { (*numbers, Typed::load::<u32>(regs, offset(&LAYOUT.regs_nr))) };
    if fd < 0 || (number != numbers as u32 && number != (numbers >> 32) as u32) {
        return;
    }
    // SAFETY: the current task is this one's; the descriptor is of its own table.
    unsafe {
        let inode = inode_of(fd as u64);
        if inode != 0 {
            keep(ctx, StackKey::accepted(pid, fd as u32), Moment::Accepted, inode);
        }
    }
}

/// The inode number of a descriptor of the current process; 0 if it has none.
///
/// # Safety
/// Only for programs that run for the current task.
#[inline(always)]
unsafe fn inode_of(fd: u64) -> u64 {
    // SAFETY: the offsets are this kernel's own. All of these are copies, which read zero where another thread has freed what they
    // are made from.
    unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        let files: *const u8 = Typed::load(task, offset(&LAYOUT.task_files));
        let table: *const u8 = Copied::load(files, offset(&LAYOUT.files_fdt));
        if fd >= u64::from(Copied::load::<u32>(table, offset(&LAYOUT.fdt_max_fds))) {
            return 0;
        }
        let of_table: *const u8 = Copied::load(table, offset(&LAYOUT.fdt_fd));
        let file: *const u8 = Copied::load(of_table, fd as usize * size_of::<u64>());
        let inode: *const u8 = Copied::load(file, offset(&LAYOUT.file_inode));
        Copied::load(inode, offset(&LAYOUT.inode_ino))
    }
}

/// Keeps the stack of the calling thread, if its process is armed.
///
/// # Safety
/// `sk` is the tracepoint's own socket, and the current task is the one that uses it.
#[inline(always)]
unsafe fn take(ctx: &BtfTracePointContext, sk: *const u8, moment: Moment) {
    // SAFETY: a helper without arguments.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    if ARMED.get_ptr(pid).is_none() {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if matches!(sock::protocol::<Typed>(sk), IPPROTO_TCP | IPPROTO_MPTCP) {
            keep(ctx, StackKey::new(sock::cookie_or_new(sk), moment), moment, 0);
        }
    }
}

/// Keeps the stack of the calling thread. `inode`: of the socket, where the key has not its cookie.
///
/// # Safety
/// Only for programs that run for the current task.
#[inline(always)]
unsafe fn keep(ctx: &BtfTracePointContext, key: StackKey, moment: Moment, inode: u64) {
    let Some(record) = STACK_SCRATCH.get_ptr_mut(moment as u32) else { return };
    // SAFETY: this CPU's own record, which nothing else uses while this program runs; the helpers write no more than their
    // sizes say. A task has a struct pt_regs (its user registers) for as long as it lives.
    unsafe {
        let pid_tgid = bpf_get_current_pid_tgid();
        (*record).time_ns = bpf_ktime_get_ns();
        (*record).inode = inode;
        (*record).pid = (pid_tgid >> 32) as u32;
        (*record).tid = pid_tgid as u32;
        let regs = bpf_task_pt_regs(bpf_get_current_task_btf().cast::<task_struct>()) as *const u8;
        let register = |at: &'static u32| Typed::load::<u64>(regs, offset(at));
        let sp = register(&LAYOUT.regs_sp);
        (*record).ip = register(&LAYOUT.regs_ip);
        (*record).sp = sp;
        (*record).fp = register(&LAYOUT.regs_fp);
        (*record).call = u64::from(Typed::load::<u32>(regs, offset(&LAYOUT.regs_nr)));
        (*record).lr = if offset(&LAYOUT.regs_lr) != 0 { register(&LAYOUT.regs_lr) } else { 0 };
        let frames = (&raw mut (*record).frames).cast();
        let size = (FRAMES * size_of::<u64>()) as u32;
        (*record).frame_bytes = bpf_get_stack(ctx.as_ptr(), frames, size, u64::from(BPF_F_USER_STACK)) as i32;
        (*record).word_count = copy_words(&raw mut (*record).words, sp);
        // By reference: it is larger than this program's stack.
        let whole: &StackRecord = &*record;
        match STACKS.insert(key, whole, 0) {
            Ok(()) => count(counter::TAKEN),
            Err(_) => count(counter::FULL),
        }
    }
}

/// Copies the words from `sp` upwards, fewer where the stack ends or is not in memory. Returns how many.
///
/// # Safety
/// `to` is writable.
#[inline(always)]
unsafe fn copy_words(to: *mut [u64; WORDS], sp: u64) -> u32 {
    for words in [WORDS, WORDS / 4, WORDS / 16] {
        let size = (words * size_of::<u64>()) as u32;
        // SAFETY: the caller's promise, and the size is at most that of the array; the helper checks the address.
        if unsafe { bpf_probe_read_user(to.cast(), size, sp as *const _) } == 0 {
            return words as u32;
        }
    }
    0
}

#[inline(always)]
fn count(which: u32) {
    if let Some(counter) = STACK_COUNTS.get_ptr_mut(which) {
        // SAFETY: this CPU's own counter; what interrupts in between loses one count at worst.
        unsafe { *counter += 1 };
    }
}
