//! Between the least time of one stream and the least time of the busiest stage.

/// How often a limit is halved at most: as often as a number can tell the halves apart.
const HALVINGS: u32 = 52;

/// By how much, relatively, a bound has to be improved for that to be worth a search.
const BETTER: f64 = 1e-8;

/// What comes of a limit for the time of each stage, in seconds.
#[derive(Debug, Clone)]
pub(super) struct Tried<T> {
    /// One stream's time per token: no more under a larger limit.
    pub(super) latency: f64,
    /// The busiest stage's time; at most the limit.
    pub(super) bottleneck: f64,
    /// How the layers lie.
    pub(super) layout: T,
}

impl<T> Tried<T> {
    fn objective(&self, streams: f64) -> f64 {
        self.latency.max(streams * self.bottleneck)
    }
}

/// The least `max(latency, streams * bottleneck)` over all limits, and how the layers lie there;
/// nothing when that is more than `bound`.
///
/// `attempt` gives the least latency under a limit, or nothing where nothing fits under it. With a
/// tighter limit the latency grows and the bottleneck shrinks, so the best is where the two meet; that
/// is found by halving until the limit is known to `precision`, relatively.
pub(super) fn balanced<T>(
    streams: f64,
    bound: f64,
    precision: f64,
    mut attempt: impl FnMut(f64) -> Option<Tried<T>>,
) -> Option<(f64, T)> {
    let mut try_within = |limit| attempt(limit).filter(|tried| tried.latency <= bound);
    let is_bound_by_stage = |tried: &Tried<T>| tried.latency < streams * tried.bottleneck;
    // Without a limit the latency is the least there is.
    let mut best = try_within(f64::INFINITY)?;
    if is_bound_by_stage(&best) && streams * best.bottleneck > bound {
        // No stage may take longer than this.
        let longest = bound / streams;
        best = try_within(longest)?;
        if try_within(longest * (1.0 - BETTER)).is_none() {
            return Some((best.objective(streams), best.layout));
        }
    }
    let (mut low, mut high) = (0.0, best.bottleneck);
    let halvings = if is_bound_by_stage(&best) { HALVINGS } else { 0 };
    let mut least = best.objective(streams);
    for _ in 0..halvings {
        let limit = f64::midpoint(low, high);
        match try_within(limit) {
            None => low = limit,
            Some(tried) => {
                if is_bound_by_stage(&tried) {
                    high = tried.bottleneck.min(limit);
                } else {
                    low = limit;
                }
                if tried.objective(streams) < least {
                    least = tried.objective(streams);
                    best = tried;
                }
            }
        }
        if high - low <= high * precision {
            break;
        }
    }
    Some((least, best.layout))
}
