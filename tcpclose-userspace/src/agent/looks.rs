//! Looks at all of the kernel's sockets that requests ask for, on a thread of their own, one at a time: many requests at once take no
//! more of the processors than one.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

#[derive(Clone, Debug)]
pub struct Looks(Arc<Semaphore>);

impl Default for Looks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Looks {
    /// Runs `look` when it is its turn. The turn ends with the look: whoever asks and goes away makes no room for another.
    ///
    /// # Errors
    /// When the thread dies.
    pub async fn take<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let turn = Arc::clone(&self.0).acquire_owned().await.context("the agent ends")?;
        let looking = spawn_blocking(move || {
            let seen = look();
            drop(turn);
            seen
        });
        looking.await.context("the thread that looks at the kernel's sockets died")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_look_that_nobody_waits_for_keeps_its_turn() {
        let looks = Looks::default();
        let (go_on, waits) = mpsc::channel::<()>();
        let (began, begun) = mpsc::channel();
        let first = looks.take(move || {
            began.send(()).unwrap();
            waits.recv().unwrap();
        });
        // Who asked has gone before the look is done.
        assert!(tokio::time::timeout(Duration::from_millis(50), first).await.is_err());
        begun.recv().unwrap();
        let second = looks.take(|| 2);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
        go_on.send(()).unwrap();
        assert_eq!(second.await.unwrap(), 2);
    }
}
