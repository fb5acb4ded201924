//! The scenes: how many visitors, at which pace, with how slow a counter, on how many cores of the server.

use crate::arms::Arm;

/// When the visitors make their visits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Each makes its next visit as soon as the last is answered.
    Closed,
    /// The same, each visit on a connection of its own.
    Reconnect,
    /// At a constant rate: this share of a capacity.
    Open(f64, Capacity),
    /// Closed, while two other visitors ask for a page of megabytes.
    BesideHeavy,
    /// Closed, on connections of one worker, for arms where a connection belongs to a worker.
    Hot,
}

/// The visits a second of which a constant rate is a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Capacity {
    /// What the slowest arm can do: the others have little to do.
    Slowest,
    /// What this arm can do. If the arm is not run, the scene is left out.
    Of(Arm),
}

impl Capacity {
    /// Whether it must be measured with this arm.
    pub fn depends_on(self, arm: Arm) -> bool {
        match self {
            Self::Slowest => true,
            Self::Of(named) => arm == named,
        }
    }
}

/// A kind of load, which each arm is measured with.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Its name on the command line and in the results.
    pub name: String,
    /// What it shows, for the summary.
    pub about: String,
    /// How many visitors.
    pub connections: usize,
    /// When they make their visits.
    pub pace: Pace,
    /// The delay of the counter's answers.
    pub counter_ms: u32,
    /// Cores of the server.
    pub cores: usize,
}

/// The scene of the main figure.
pub const MAIN: &str = "closed-64";
/// The scene of the latency in the README.
pub const PACED: &str = "open-70";
/// The same at a rate that is high only for arms like axum.
pub const PACED_BY_AXUM: &str = "open-axum-70";
/// The scenes of `--quick`.
pub const QUICK: [&str; 4] = [MAIN, "reconnect", PACED, "slow-counter-2ms"];

impl Scene {
    fn new(name: &str, about: &str, connections: usize, pace: Pace) -> Self {
        let (name, about) = (name.to_owned(), about.to_owned());
        Self { name, about, connections, pace, counter_ms: 0, cores: 1 }
    }

    /// All scenes, for a server with at most this many cores.
    pub fn all(cores: usize) -> Vec<Self> {
        let mut scenes = Self::on_one_core();
        if cores > 1 {
            scenes.extend(Self::on_several_cores(cores));
        }
        scenes
    }

    fn on_one_core() -> Vec<Self> {
        let mut scenes: Vec<_> = [1, 8, 64, 256, 1024]
            .into_iter()
            .map(|connections| {
                let name = format!("closed-{connections}");
                Self::new(&name, "closed loop, keep-alive", connections, Pace::Closed)
            })
            .collect();
        let reconnect = "closed loop, a new connection for each visit";
        scenes.push(Self::new("reconnect", reconnect, 64, Pace::Reconnect));
        for percent in [50, 70, 90] {
            scenes.push(Self::new(
                &format!("open-{percent}"),
                &format!("{percent} % of what the slowest arm can do, at a constant rate"),
                64,
                Pace::Open(f64::from(percent) / 100.0, Capacity::Slowest),
            ));
        }
        let paced = "70 % of what axum can do, at a constant rate";
        let pace = Pace::Open(0.7, Capacity::Of(Arm::Axum));
        scenes.push(Self::new(PACED_BY_AXUM, paced, 64, pace));
        for (counter_ms, connections) in [(2, 256), (100, 4096)] {
            let name = format!("slow-counter-{counter_ms}ms");
            let about = format!("a counter that takes {counter_ms} ms");
            let scene = Self::new(&name, &about, connections, Pace::Closed);
            scenes.push(Self { counter_ms, ..scene });
        }
        scenes
    }

    fn on_several_cores(cores: usize) -> Vec<Self> {
        let heavy = "visits beside two visitors of a page of 4 MiB";
        let heavy = Self::new("heavy-page", heavy, 64, Pace::BesideHeavy);
        let hot = "four connections that one worker has, where connections have one";
        let hot = Self::new("hot-connections", hot, 4, Pace::Hot);
        let mut scenes = vec![Self { cores, ..heavy }, Self { cores, ..hot }];
        let doubled = std::iter::successors(Some(1), |some| Some(some * 2));
        for some in doubled.take_while(|some| *some < cores).chain([cores]) {
            let about = format!("closed loop, the server on {some} of {cores} cores");
            let scaling = Self::new(&format!("cores-{some}"), &about, 256, Pace::Closed);
            scenes.push(Self { cores: some, ..scaling });
        }
        scenes
    }

    /// Whether an arm can be measured in it.
    pub fn suits(&self, arm: Arm) -> bool {
        (self.cores == 1 || arm.scales())
            && match self.pace {
                Pace::BesideHeavy => arm.has_heavy_page(),
                // `seed` can do a third of that, and its queue would grow during the whole run.
                Pace::Open(_, Capacity::Of(_)) => arm != Arm::Seed,
                _ => true,
            }
    }

    /// Whether its rate can be measured with these arms.
    pub fn is_possible(&self, arms: &[Arm]) -> bool {
        match self.pace {
            Pace::Open(_, capacity) => arms.iter().any(|arm| capacity.depends_on(*arm)),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scene_needs_the_arm_of_its_rate_and_arms_that_keep_up() {
        let scenes = Scene::all(1);
        let scene = scenes.iter().find(|scene| scene.name == "open-axum-70").unwrap();
        assert!(scene.is_possible(&[Arm::Floor, Arm::Axum]));
        assert!(!scene.is_possible(&[Arm::Floor, Arm::Hyper]));
        assert!(scene.suits(Arm::Hyper) && !scene.suits(Arm::Seed));
    }

    #[test]
    fn the_scenes_depend_on_the_cores() {
        let names = |cores| Scene::all(cores).into_iter().map(|s| s.name).collect::<Vec<_>>();
        let one = names(1);
        assert!(QUICK.iter().all(|quick| one.iter().any(|name| name == quick)));
        assert!(!one.iter().any(|name| name.starts_with("cores")));
        let six = names(6);
        assert!(six.ends_with(&["cores-1", "cores-2", "cores-4", "cores-6"].map(String::from)));
    }
}
