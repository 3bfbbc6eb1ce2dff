//! The offsets of the fields that the probe reads from kernel structs.
//!
//! rustc emits no CO-RE relocations. The agent resolves these offsets from the running kernel's BTF at start and
//! writes them into the probe's read-only data before it loads; frozen there, they are constants to the verifier.

/// Makes [`Layout`] of a table: per offset its doc, the name of the kernel struct that it is counted from, and the path of
/// the field (dots between members; a bit field is followed by a colon and its width).
macro_rules! layout {
    ($($(#[$meta:meta])* $offset:ident: $struct:literal, $path:literal;)+) => {
        /// Byte offsets, each from the start of the struct in its comment; of a bit field eight times that, and
        /// the number of bits that are less significant in that byte.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Layout {
            /// 1 when the offsets below were resolved; 0 on a kernel without BTF, where the classic tracepoint reads nothing
            /// from the socket and says so in each record.
            pub resolved: u32,
            /// 1 where `tcp_send_reset` has the reason of the RST as its third argument, since 6.10.
            pub has_reset_reason: u32,
            /// 1 where `tcp_retransmit_skb` has an error as its third argument, since 6.17.
            pub has_retransmit_error: u32,
            $(
                $(#[$meta])*
                #[doc = concat!("From `struct ", $struct, "`: `", $path, "`.")]
                pub $offset: u32,
            )+
        }

        impl Layout {
            pub const UNRESOLVED: Self = Self { resolved: 0, has_reset_reason: 0, has_retransmit_error: 0, $($offset: 0,)+ };

            /// Resolves each offset by the name of the struct and the path of the field.
            ///
            /// # Errors
            /// The first error of `offset_of`.
            pub fn resolve<E>(mut offset_of: impl FnMut(&str, &str) -> Result<u32, E>) -> Result<Self, E> {
                Ok(Self { resolved: 1, has_reset_reason: 0, has_retransmit_error: 0, $($offset: offset_of($struct, $path)?,)+ })
            }
        }
    };
}

layout! {
    /// `u16` (address family).
    skc_family: "sock", "__sk_common.skc_family";
    /// `__be32`.
    skc_daddr: "sock", "__sk_common.skc_daddr";
    /// `__be32`.
    skc_rcv_saddr: "sock", "__sk_common.skc_rcv_saddr";
    /// `__be16`.
    skc_dport: "sock", "__sk_common.skc_dport";
    /// `struct in6_addr`.
    skc_v6_daddr: "sock", "__sk_common.skc_v6_daddr";
    /// `struct in6_addr`.
    skc_v6_rcv_saddr: "sock", "__sk_common.skc_v6_rcv_saddr";
    /// `struct net *`.
    skc_net: "sock", "__sk_common.skc_net.net";
    /// `u16` since 5.6.
    sk_protocol: "sock", "sk_protocol";
    /// `unsigned long`.
    sk_flags: "sock", "__sk_common.skc_flags";
    /// `unsigned long`.
    sk_lingertime: "sock", "sk_lingertime";
    /// `int`.
    sk_err: "sock", "sk_err";
    /// `int`.
    sk_err_soft: "sock", "sk_err_soft";
    /// `u32`.
    sk_max_ack_backlog: "sock", "sk_max_ack_backlog";
    /// `u8`.
    sk_shutdown: "sock", "sk_shutdown";
    /// `int`.
    sk_lock_owned: "sock", "sk_lock.owned";
    /// `unsigned int`.
    net_inum: "net", "ns.inum";
    /// 32 bits that identify it: the low half of `net_cookie` (an `atomic64_t` until 5.11, a `u64` since) where a program
    /// can ask for that too (SO_NETNS_COOKIE, 5.14; the agent then replaces the offset), else `ns.inum`, which is used
    /// again.
    net_id: "net", "ns.inum";
    /// `__be16`.
    inet_sport: "tcp_sock", "inet_conn.icsk_inet.inet_sport";
    /// `int`.
    linger2: "tcp_sock", "linger2";
    /// `u32`.
    snd_una: "tcp_sock", "snd_una";
    /// `u32`.
    snd_nxt: "tcp_sock", "snd_nxt";
    /// `u64`.
    bytes_acked: "tcp_sock", "bytes_acked";
    /// `u64`, since 4.19 as the next.
    bytes_sent: "tcp_sock", "bytes_sent";
    /// `u64`.
    bytes_retrans: "tcp_sock", "bytes_retrans";
    /// `u8 : 1`, in bits.
    repair: "tcp_sock", "repair:1";
    /// `bool`; 0 in a kernel without MPTCP, which has no such field.
    is_mptcp: "tcp_sock", "is_mptcp";
    /// `u32`.
    write_seq: "tcp_sock", "write_seq";
    /// `atomic64_t`; a minisocket begins with a sock_common too.
    skc_cookie: "sock_common", "skc_cookie";
    /// `u32`.
    rcv_nxt: "tcp_sock", "rcv_nxt";
    /// `u32`: a minisocket's `tw_rcv_nxt`.
    skc_tw_rcv_nxt: "sock_common", "skc_tw_rcv_nxt";
    /// `u16`, host order.
    skc_num: "sock_common", "skc_num";
    /// `unsigned char`.
    skc_state: "sock_common", "skc_state";
    /// `unsigned char : 4`, in bits.
    skc_reuse: "sock_common", "skc_reuse:4";
    /// `unsigned char`.
    tw_substate: "inet_timewait_sock", "tw_substate";
    /// `struct timer_list`.
    tw_timer: "inet_timewait_sock", "tw_timer";
    /// `struct task_struct *`.
    task_group_leader: "task_struct", "group_leader";
    /// `struct files_struct *`.
    task_files: "task_struct", "files";
    /// `unsigned int`.
    task_flags: "task_struct", "flags";
    /// `pid_t`.
    task_tgid: "task_struct", "tgid";
    /// `struct fdtable *`.
    files_fdt: "files_struct", "fdt";
    /// `unsigned int`.
    fdt_max_fds: "fdtable", "max_fds";
    /// `struct file **`.
    fdt_fd: "fdtable", "fd";
    /// `struct inode *`.
    file_inode: "file", "f_inode";
    /// `void *`: a socket's `struct socket *`.
    file_private: "file", "private_data";
    /// `struct sock *`.
    socket_sk: "socket", "sk";
    /// `umode_t` (`u16`).
    inode_mode: "inode", "i_mode";
    /// `unsigned long`.
    inode_ino: "inode", "i_ino";
    /// `struct super_block *`.
    inode_sb: "inode", "i_sb";
    /// `unsigned long`.
    sb_magic: "super_block", "s_magic";
    /// 64 bits: the instruction pointer. The agent names the registers of its architecture.
    regs_ip: "pt_regs", "ip";
    /// 64 bits: the stack pointer.
    regs_sp: "pt_regs", "sp";
    /// 64 bits: the frame pointer.
    regs_fp: "pt_regs", "bp";
    /// 64 bits: the link register; 0 where there is none.
    regs_lr: "pt_regs", "lr";
    /// The number of the system call, of which the low 32 bits are read.
    regs_nr: "pt_regs", "nr";
}

const _: () = assert!(size_of::<Layout>() == 57 * size_of::<u32>());

/// Where the fields of the classic tracepoint's record are, byte offsets from its start: tracefs tells them, in
/// `events/sock/inet_sock_set_state/format`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLayout {
    /// 1 for [`Self::MAINLINE`], which the program reads in place; else it copies each field from its offset.
    pub is_mainline: u32,
    /// `const void *`.
    pub skaddr: u32,
    /// `int`.
    pub oldstate: u32,
    /// `int`.
    pub newstate: u32,
    /// `__u16`, host order.
    pub sport: u32,
    /// `__u16`, host order.
    pub dport: u32,
    /// `__u16`, since 5.6.
    pub protocol: u32,
    /// `__u8[16]`.
    pub saddr_v6: u32,
    /// `__u8[16]`.
    pub daddr_v6: u32,
}

impl RecordLayout {
    /// After a common header of 8 bytes (include/trace/events/sock.h, 5.8 to 6.18). A vendor's header may be longer:
    /// kernels with PREEMPT_RT's lazy preemption have a `common_preempt_lazy_count` behind `common_pid`.
    pub const MAINLINE: Self = Self {
        is_mainline: 1,
        skaddr: 8,
        oldstate: 16,
        newstate: 20,
        sport: 24,
        dport: 26,
        protocol: 30,
        saddr_v6: 40,
        daddr_v6: 56,
    };
}

const _: () = assert!(size_of::<RecordLayout>() == 9 * size_of::<u32>());
