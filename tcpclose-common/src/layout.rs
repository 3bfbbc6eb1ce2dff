//! Where the fields lie that the probe reads from kernel structs.
//!
//! rustc emits no CO-RE relocations. The agent resolves these offsets from the running kernel's BTF at start and
//! writes them into the probe's read-only data before it loads; frozen there, they are constants to the verifier.

/// Byte offsets, each from the start of the struct named in its comment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// 1 when the offsets below were resolved; 0 on a kernel without BTF, where the classic tracepoint reads nothing
    /// from the socket and says so in each record.
    pub resolved: u32,
    /// `struct sock`, `u16` (address family).
    pub skc_family: u32,
    /// `struct sock`, `__be32`.
    pub skc_daddr: u32,
    /// `struct sock`, `__be32`.
    pub skc_rcv_saddr: u32,
    /// `struct sock`, `__be16`.
    pub skc_dport: u32,
    /// `struct sock`, `struct in6_addr`.
    pub skc_v6_daddr: u32,
    /// `struct sock`, `struct in6_addr`.
    pub skc_v6_rcv_saddr: u32,
    /// `struct sock`, `struct net *`.
    pub skc_net: u32,
    /// `struct sock`, `u16` since 5.6.
    pub sk_protocol: u32,
    /// `struct sock`, `unsigned long`.
    pub sk_flags: u32,
    /// `struct sock`, `int`.
    pub sk_err: u32,
    /// `struct sock`, `int`.
    pub sk_err_soft: u32,
    /// `struct sock`, `u32`.
    pub sk_max_ack_backlog: u32,
    /// `struct sock`, `u8`.
    pub sk_shutdown: u32,
    /// `struct sock`, `int` (`sk_lock.owned`).
    pub sk_lock_owned: u32,
    /// `struct net`, `unsigned int` (`ns.inum`).
    pub net_inum: u32,
    /// `struct net`, 32 bits that identify it: the low half of `net_cookie` (an `atomic64_t` until 5.11, a `u64` since)
    /// where a program can ask for that too (SO_NETNS_COOKIE, 5.14), else `ns.inum`, which is used again.
    pub net_id: u32,
    /// `struct tcp_sock`, `__be16` (`inet_conn.icsk_inet.inet_sport`).
    pub inet_sport: u32,
    /// `struct tcp_sock`, `int`.
    pub linger2: u32,
    /// `struct tcp_sock`, `u32`.
    pub snd_una: u32,
    /// `struct tcp_sock`, `u32`.
    pub write_seq: u32,
    /// `struct sock_common`, `atomic64_t`; a minisocket begins with a sock_common too.
    pub skc_cookie: u32,
    /// `struct tcp_sock`, `u32`.
    pub rcv_nxt: u32,
    /// `struct sock_common`, `u32`: a minisocket's `tw_rcv_nxt`.
    pub skc_tw_rcv_nxt: u32,
    /// `struct sock_common`, `u16`, host order.
    pub skc_num: u32,
    /// `struct sock_common`, `unsigned char`.
    pub skc_state: u32,
    /// `struct inet_timewait_sock`, `unsigned char`.
    pub tw_substate: u32,
    /// `struct inet_timewait_sock`, `struct timer_list`.
    pub tw_timer: u32,
    /// `struct task_struct`, `struct task_struct *`.
    pub task_group_leader: u32,
    /// `struct task_struct`, `struct files_struct *`.
    pub task_files: u32,
    /// `struct task_struct`, `unsigned int`.
    pub task_flags: u32,
    /// `struct task_struct`, `pid_t`.
    pub task_tgid: u32,
    /// `struct file`, `struct inode *`.
    pub file_inode: u32,
    /// `struct inode`, `umode_t` (`u16`).
    pub inode_mode: u32,
    /// `struct inode`, `unsigned long`.
    pub inode_ino: u32,
    /// `struct inode`, `struct super_block *`.
    pub inode_sb: u32,
    /// `struct super_block`, `unsigned long`.
    pub sb_magic: u32,
}
