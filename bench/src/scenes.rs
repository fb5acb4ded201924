//! What is asked of each arm: how many visitors, at which pace, with how slow a counter, on how many
//! cores.

use crate::arms::Arm;

/// How the visitors come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// Each makes its next visit as soon as the last is answered.
    Closed,
    /// The same, each visit on a connection of its own.
    Reconnect,
    /// At a constant rate: this share of what such an arm can do.
    Open(f64, Capacity),
    /// Closed, while two others ask for a page of megabytes.
    BesideHeavy,
    /// Closed, all on connections that one worker has, if connections have one.
    Hot,
}

/// Whose visits a second a constant rate is a share of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Capacity {
    /// The slowest arm's: all others have little to do.
    Slowest,
    /// This arm's. Without it the scene is left out.
    Of(Arm),
}

impl Capacity {
    /// Whether it takes this arm's to know it.
    pub fn rests_on(self, arm: Arm) -> bool {
        match self {
            Self::Slowest => true,
            Self::Of(named) => arm == named,
        }
    }
}

/// One thing that is asked of each arm.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// Its name on the command line and in the results.
    pub name: String,
    /// What it shows, for the summary.
    pub about: String,
    /// How many visitors.
    pub connections: usize,
    /// How they come.
    pub pace: Pace,
    /// How long the counter takes.
    pub counter_ms: u32,
    /// Cores of the server.
    pub cores: usize,
}

/// The scene that the main figure is from.
pub const MAIN: &str = "closed-64";
/// The scene that the latency in the README is from.
pub const PACED: &str = "open-70";
/// The same at a rate that only axum's likes find high.
pub const PACED_BY_AXUM: &str = "open-axum-70";
/// What `--quick` runs.
pub const QUICK: [&str; 4] = [MAIN, "reconnect", PACED, "slow-counter-2ms"];

impl Scene {
    /// All scenes, for a server that has so many cores at most.
    pub fn all(cores: usize) -> Vec<Self> {
        let scene = |name: &str, about: &str, connections: usize, pace| Self {
            name: name.to_owned(),
            about: about.to_owned(),
            connections,
            pace,
            counter_ms: 0,
            cores: 1,
        };
        let mut scenes: Vec<_> = [1, 8, 64, 256, 1024]
            .into_iter()
            .map(|connections| {
                let name = format!("closed-{connections}");
                scene(&name, "closed loop, keep-alive", connections, Pace::Closed)
            })
            .collect();
        scenes.push(scene(
            "reconnect",
            "closed loop, a new connection for each visit",
            64,
            Pace::Reconnect,
        ));
        for percent in [50, 70, 90] {
            scenes.push(scene(
                &format!("open-{percent}"),
                &format!("{percent} % of what the slowest arm can do, at a constant rate"),
                64,
                Pace::Open(f64::from(percent) / 100.0, Capacity::Slowest),
            ));
        }
        scenes.push(scene(
            PACED_BY_AXUM,
            "70 % of what axum can do, at a constant rate",
            64,
            Pace::Open(0.7, Capacity::Of(Arm::Axum)),
        ));
        for (milliseconds, connections) in [(2, 256), (100, 4096)] {
            scenes.push(Self {
                counter_ms: milliseconds,
                ..scene(
                    &format!("slow-counter-{milliseconds}ms"),
                    &format!("a counter that takes {milliseconds} ms"),
                    connections,
                    Pace::Closed,
                )
            });
        }
        if cores > 1 {
            let wide = |scene: Self| Self { cores, ..scene };
            let heavy = "visits beside two visitors of a page of 4 MiB";
            scenes.push(wide(scene("heavy-page", heavy, 64, Pace::BesideHeavy)));
            let hot = "four connections that one worker has, where connections have one";
            scenes.push(wide(scene("hot-connections", hot, 4, Pace::Hot)));
            let mut some = 1;
            loop {
                let about = format!("closed loop, the server on {some} of {cores} cores");
                let scaling = scene(&format!("cores-{some}"), &about, 256, Pace::Closed);
                scenes.push(Self { cores: some, ..scaling });
                if some == cores {
                    break;
                }
                some = (some * 2).min(cores);
            }
        }
        scenes
    }

    /// Whether an arm can be asked this.
    pub fn suits(&self, arm: Arm) -> bool {
        (self.cores == 1 || arm.scales())
            && match self.pace {
                Pace::BesideHeavy => arm.has_heavy_page(),
                // It does a third of that, and its queue would grow for as long as it is run.
                Pace::Open(_, Capacity::Of(_)) => arm != Arm::Seed,
                _ => true,
            }
    }

    /// Whether it can be asked of some of these arms.
    pub fn is_possible(&self, arms: &[Arm]) -> bool {
        match self.pace {
            Pace::Open(_, capacity) => arms.iter().any(|arm| capacity.rests_on(*arm)),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_an_arm_that_is_there_and_for_those_that_keep_up() {
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
