//! `iter/task_file`: every descriptor on a socket, of every process, in one pass (Linux ≥ 5.8 with BTF).

use core::ffi::c_void;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::bpf_seq_write;
use tcpclose_common::held::Held;

use crate::sock::{Copied, LAYOUT, Load, Typed, cookie, offset};

/// `struct bpf_iter__task_file` (kernel/bpf/task_iter.c, 5.8 to 6.18), a part of the kernel's interface.
#[repr(C)]
pub struct Context {
    meta: *const *mut seq_file,
    task: *const u8,
    fd: u32,
    file: *const u8,
}

/// include/uapi/linux/stat.h.
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
/// include/uapi/linux/magic.h. A unix socket's file on a disk has S_IFSOCK too, and an inode number of that disk's.
const SOCKFS_MAGIC: u64 = 0x534f_434b;

/// Writes one descriptor, if it is on a socket.
///
/// # Safety
/// `ctx` is the context that the kernel runs an iterator over task_file with.
#[inline(always)]
pub unsafe fn visit(ctx: *const Context) {
    // SAFETY: the caller's promise. At the end of the pass task and file are null; until then they are a live
    // task_struct and file, whose offsets are this kernel's own. A task_struct's group_leader and a file's f_inode are
    // never null; the verifier makes a load through a bad pointer read zero. A file of sockfs has a socket in private_data
    // (net/socket.c, sock_alloc_file(), 5.8 to 6.18), whose type the verifier does not know: those loads are copies, which read
    // zero where the socket has been released.
    unsafe {
        let (task, file) =
            ((&raw const (*ctx).task).read_volatile(), (&raw const (*ctx).file).read_volatile());
        if task.is_null() || file.is_null() {
            return;
        }
        let inode: *const u8 = Typed::load(file, offset(&LAYOUT.file_inode));
        let mode: u16 = Typed::load(inode, offset(&LAYOUT.inode_mode));
        if mode & S_IFMT != S_IFSOCK {
            return;
        }
        let filesystem: *const u8 = Typed::load(inode, offset(&LAYOUT.inode_sb));
        if Typed::load::<u64>(filesystem, offset(&LAYOUT.sb_magic)) != SOCKFS_MAGIC {
            return;
        }
        // Threads share their process's files, and kernels before 5.11 visit each (task_seq_get_next()). One that has
        // taken a file table of its own holds sockets that its process does not.
        let leader: *const u8 = Typed::load(task, offset(&LAYOUT.task_group_leader));
        let files = |task| Typed::load::<u64>(task, offset(&LAYOUT.task_files));
        if task != leader && files(task) == files(leader) {
            return;
        }
        let socket: *const u8 = Typed::load(file, offset(&LAYOUT.file_private));
        let sk: *const u8 = Copied::load(socket, offset(&LAYOUT.socket_sk));
        let held = Held {
            inode: Typed::load(inode, offset(&LAYOUT.inode_ino)),
            cookie: cookie::<Copied>(sk),
            pid: Typed::load(task, offset(&LAYOUT.task_tgid)),
            fd: (&raw const (*ctx).fd).read_volatile(),
        };
        let seq = (&raw const (*ctx).meta).read_volatile().read_volatile();
        // When the kernel's buffer is full it hands that out and comes again with the same file.
        bpf_seq_write(seq, (&raw const held).cast::<c_void>(), Held::SIZE as u32);
    }
}
