//! A set of ports.

/// One bit per port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSet(Box<[u64]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![0; (1 << 16) / u64::BITS as usize].into())
    }
}

impl PortSet {
    /// As the kernel writes `ip_local_reserved_ports`: `1000,2000-2010` (lib/proc `proc_do_large_bitmap()`). Malformed
    /// fields are ignored.
    pub fn parse(text: &str) -> Self {
        let mut ports = Self::default();
        for field in text.trim().split(',') {
            let (first, last) = field.split_once('-').unwrap_or((field, field));
            if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
                (first..=last).for_each(|port| ports.add(port));
            }
        }
        ports
    }

    pub fn add(&mut self, port: u16) {
        if let Some(word) = self.0.get_mut(usize::from(port) / 64) {
            *word |= 1 << (port % 64);
        }
    }

    pub fn has(&self, port: u16) -> bool {
        self.0.get(usize::from(port) / 64).is_some_and(|word| word >> (port % 64) & 1 != 0)
    }

    pub fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let ports = PortSet::parse("1000,2000-2010,65535\n");
        assert!(ports.has(1000) && ports.has(2000) && ports.has(2010) && ports.has(65535));
        assert!(!ports.has(1001) && !ports.has(0));
        assert_eq!(ports.len(), 13);
        assert!(PortSet::parse("\n").is_empty() && PortSet::parse("x,9-,-").is_empty());
    }
}
