//! Reads certificates, keys and trust files again while the process runs: certificates live shorter
//! than processes.
//!
//! Each holder of such files hands its reading to [`TaskGroup::keep_fresh`], so that one rule says
//! when files are read again, and all of them are read on SIGHUP.

use std::{convert::Infallible, fmt::Display, time::Duration};

use super::TaskGroup;

/// How long a rotated certificate may wait on disk before it is used.
const INTERVAL: Duration = Duration::from_secs(60);

impl TaskGroup {
    /// Calls `reload` every minute and on SIGHUP, on a task called `what`, until the group stops. A
    /// reload that fails leaves in use what was loaded before, and is logged as an error.
    pub fn keep_fresh<E: Display>(
        &self,
        what: &'static str,
        reload: impl Fn() -> Result<(), E> + Send + 'static,
    ) {
        let (mut asked, stop) = (self.reloads(), self.shutdown().requested());
        self.spawn(what, async move {
            tokio::pin!(stop);
            loop {
                tokio::select! {
                    () = &mut stop => return Ok::<_, Infallible>(()),
                    () = tokio::time::sleep(INTERVAL) => {}
                    // The group holds the sender for as long as this task runs.
                    _ = asked.changed() => {}
                }
                if let Err(error) = reload() {
                    tracing::error!(%error, "{what} not reloaded; the files read before stay in use");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reload_that_fails_is_tried_again_a_minute_later() {
        let group = TaskGroup::new();
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        group.keep_fresh("credentials", move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Err("a file is half written")
        });
        for expected in 1..4 {
            tokio::time::sleep(INTERVAL).await;
            tokio::task::yield_now().await;
            assert_eq!(calls.load(Ordering::SeqCst), expected);
        }
        group.shutdown().request();
        group.run(Duration::from_secs(1)).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 3, "none after the stop");
    }
}
