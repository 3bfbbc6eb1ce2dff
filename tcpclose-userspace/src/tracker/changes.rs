//! The sockets that have changed since the last save.

/// Slots whose sockets have changed since the last save.
#[derive(Debug, Default)]
pub(super) struct ChangedSockets {
    slots: Vec<u32>,
    noted: BitSet,
    /// The slots were numbered anew.
    pub(super) all: bool,
}

impl ChangedSockets {
    /// Everything has changed.
    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    pub(super) fn note(&mut self, slot: usize) {
        // A slab of 2³² sockets would not fit in memory. When all are written, none has to be noted.
        if !self.all
            && self.noted.set(slot)
            && let Ok(slot) = u32::try_from(slot)
        {
            self.slots.push(slot);
        }
    }

    /// Every slot noted so far, each once.
    pub(super) fn take(&mut self) -> Vec<u32> {
        let slots = std::mem::take(&mut self.slots);
        for &slot in &slots {
            self.noted.clear(slot as usize);
        }
        slots
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A set of small numbers.
#[derive(Debug, Default)]
pub(super) struct BitSet {
    words: Vec<u64>,
    len: usize,
}

impl BitSet {
    /// Adds `n`; returns whether it is new.
    pub(super) fn set(&mut self, n: usize) -> bool {
        let (word, bit) = (n / 64, 1 << (n % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let Some(bits) = self.words.get_mut(word) else { return false };
        let new = *bits & bit == 0;
        *bits |= bit;
        self.len += usize::from(new);
        new
    }

    /// Removes `n`; returns whether it was there.
    pub(super) fn clear(&mut self, n: usize) -> bool {
        let (word, bit) = (n / 64, 1 << (n % 64));
        let Some(bits) = self.words.get_mut(word) else { return false };
        let there = *bits & bit != 0;
        *bits &= !bit;
        self.len -= usize::from(there);
        there
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}
