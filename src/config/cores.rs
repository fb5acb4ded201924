//! The core of each worker, by `workers` or by `cores`.

use super::{
    arguments::{WORKERS_MAX, Workers},
    error::{ConfigError, invalid},
    pick::{Pick, Source},
    values::{Cores, Number},
};
use crate::runtime::host;

/// The core of each worker. `workers` and `cores`, each as a flag or variable and as the file gives it, are two
/// forms of one setting: the one from the higher source wins.
pub(super) fn settle_cores(
    pick: &mut Pick<'_>,
    (workers, workers_in_file): (Option<Workers>, Option<Workers>),
    (cores, cores_in_file): (Option<Cores>, Option<Cores>),
) -> Result<Vec<usize>, ConfigError> {
    let workers_from = pick.source("workers", workers_in_file.is_some());
    let cores_from = pick.source("cores", cores_in_file.is_some());
    if workers_from == cores_from && workers_from != Source::Default {
        let given = ["workers", "cores"].map(|name| pick.describe(name, workers_from));
        let given = match workers_from {
            Source::File => format!("workers and cores of {}", given[0]),
            _ => given.join(" and "),
        };
        return Err(invalid("workers", format!("{given} exclude each other; give one of them")));
    }
    if cores_from > workers_from {
        let cores = listed_cores(if cores_from == Source::File { cores_in_file } else { cores })?;
        pick.note("workers", cores.len().to_string(), String::from("follows from cores"));
        pick.note("cores", Cores::of(&cores).to_string(), pick.describe("cores", cores_from));
        return Ok(cores);
    }
    let workers = if workers_from == Source::File { workers_in_file } else { workers };
    let cores = first_cores(workers.map(|Number(workers)| workers))?;
    pick.note("workers", cores.len().to_string(), pick.describe("workers", workers_from));
    pick.note("cores", Cores::of(&cores).to_string(), String::from("follows from workers"));
    Ok(cores)
}

/// The cores of a list, if this process may run on all of them.
fn listed_cores(cores: Option<Cores>) -> Result<Vec<usize>, ConfigError> {
    let allowed = host::cores();
    let cores = cores.map(|Cores(cores)| cores).unwrap_or_default();
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => {
            let allowed = Cores(allowed);
            let problem = format!("this process may not run on core {core}, only on {allowed}");
            Err(invalid("cores", problem))
        }
        None => Ok(cores),
    }
}

/// The first cores that this process may run on: for this many workers, or for one on each core.
fn first_cores(workers: Option<usize>) -> Result<Vec<usize>, ConfigError> {
    let allowed = host::cores();
    let workers = workers.unwrap_or_else(|| host::parallelism().clamp(1, WORKERS_MAX));
    if allowed.is_empty() {
        return Err(invalid(
            "workers",
            "the system does not tell which cores this process may use",
        ));
    }
    // Where there are more workers than cores, several share a core.
    Ok(allowed.iter().copied().cycle().take(workers).collect())
}
