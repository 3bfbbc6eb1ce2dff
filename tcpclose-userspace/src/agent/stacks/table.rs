//! Named stacks by socket: the newest, bounded in number and in bytes. Pure.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tcpclose_common::stack::Moment;

use crate::linux::stacks::frames::{Frame, Stack};

/// The most sockets with stacks.
pub const MOST_SOCKETS: usize = 4_096;
/// The most bytes of all stacks.
pub const MOST_BYTES: usize = 16 << 20;

/// What stacks are kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketId {
    Cookie(u64),
    /// The inode number, for the stack of accept(): the socket has no cookie yet.
    Inode(u64),
}

/// The stacks of a socket, by moment.
pub type SocketStacks = [Option<Arc<Stack>>; Moment::ALL.len()];

#[derive(Debug, Default)]
pub struct StackTable {
    sockets: HashMap<SocketId, SocketStacks>,
    /// The oldest first.
    order: VecDeque<SocketId>,
    /// Each stack once.
    stacks: HashSet<Arc<Stack>>,
    bytes: usize,
    /// Sockets whose stacks were dropped for newer ones.
    pub evicted: u64,
}

impl StackTable {
    /// Keeps a stack, but for one that is larger than all together may be.
    pub fn insert(&mut self, id: SocketId, moment: Moment, stack: Stack) {
        let size = size_of_stack(&stack);
        if size > MOST_BYTES {
            return;
        }
        let stack = match self.stacks.get(&stack) {
            Some(known) => Arc::clone(known),
            None => {
                let stack = Arc::new(stack);
                self.bytes += size;
                self.stacks.insert(Arc::clone(&stack));
                stack
            }
        };
        let order = &mut self.order;
        let of_socket = self.sockets.entry(id).or_insert_with(|| {
            order.push_back(id);
            SocketStacks::default()
        });
        if let Some(slot) = of_socket.get_mut(moment as usize) {
            *slot = Some(stack);
        }
        while self.sockets.len() > MOST_SOCKETS || self.bytes > MOST_BYTES {
            if !self.evict() {
                return;
            }
        }
    }

    /// A stack of a socket. `inode`: 0 if it is not known.
    pub fn get(&self, cookie: u64, inode: u64, moment: Moment) -> Option<&Arc<Stack>> {
        let id = match moment {
            Moment::Accepted => SocketId::Inode(inode),
            Moment::Opened | Moment::EndRead | Moment::Written => SocketId::Cookie(cookie),
        };
        self.sockets.get(&id)?.get(moment as usize)?.as_ref()
    }

    /// The number of sockets with stacks, and the bytes of all stacks.
    pub fn size(&self) -> (usize, usize) {
        (self.sockets.len(), self.bytes)
    }

    /// Drops the oldest tenth. Returns whether there was any.
    fn evict(&mut self) -> bool {
        let some = self.order.len().div_ceil(10);
        for id in self.order.drain(..some) {
            self.sockets.remove(&id);
            self.evicted += 1;
        }
        self.prune();
        some > 0
    }

    /// Drops stacks that no socket has.
    fn prune(&mut self) {
        let bytes = &mut self.bytes;
        self.stacks.retain(|stack| {
            let is_used = Arc::strong_count(stack) > 1;
            if !is_used {
                *bytes -= size_of_stack(stack);
            }
            is_used
        });
    }
}

/// The memory of a stack, about.
fn size_of_stack(stack: &Stack) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let of_frame = |frame: &Frame| {
        let texts = [&frame.function, &frame.file, &frame.module, &frame.build_id];
        size_of::<Frame>() + texts.into_iter().map(text).sum::<usize>()
    };
    size_of::<Stack>() + stack.frames.iter().map(of_frame).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(name: &str) -> Stack {
        let function = Some(name.to_owned());
        Stack { frames: vec![Frame { function, ..Frame::default() }], cut: None }
    }

    fn insert(table: &mut StackTable, cookie: u64, stack: Stack) {
        table.insert(SocketId::Cookie(cookie), Moment::EndRead, stack);
    }

    #[test]
    fn equal_stacks_are_kept_once_and_the_newest_counts() {
        let mut table = StackTable::default();
        for cookie in 0..100 {
            insert(&mut table, cookie, stack("leak"));
        }
        assert_eq!(table.size(), (100, size_of_stack(&stack("leak"))));
        insert(&mut table, 1, stack("other"));
        let of = |cookie| table.get(cookie, 0, Moment::EndRead).map(|stack| (**stack).clone());
        assert_eq!((of(1), of(2), of(100)), (Some(stack("other")), Some(stack("leak")), None));
        // An inode number is no cookie.
        table.insert(SocketId::Inode(1), Moment::Accepted, stack("accept"));
        assert_eq!(table.get(7, 1, Moment::Accepted).map(|stack| (**stack).clone()), Some(stack("accept")));
        assert!(table.get(1, 7, Moment::Accepted).is_none());
    }

    #[test]
    fn the_oldest_sockets_go_first_and_bounds_hold() {
        let mut table = StackTable::default();
        for cookie in 0..3 * MOST_SOCKETS as u64 {
            insert(&mut table, cookie, stack(&cookie.to_string()));
            assert!(table.size().0 <= MOST_SOCKETS && table.size().1 <= MOST_BYTES);
        }
        let has = |cookie| table.get(cookie, 0, Moment::EndRead).is_some();
        assert!(!has(0) && has(3 * MOST_SOCKETS as u64 - 1));
        assert_eq!(table.evicted as usize + table.size().0, 3 * MOST_SOCKETS);
        // Long names of a hostile program.
        let mut table = StackTable::default();
        for cookie in 0..100 {
            insert(&mut table, cookie, stack(&cookie.to_string().repeat(1 << 20)));
            assert!(table.size().1 <= MOST_BYTES);
        }
        insert(&mut table, 999, stack(&"x".repeat(2 * MOST_BYTES)));
        assert!(table.get(999, 0, Moment::EndRead).is_none());
    }
}
