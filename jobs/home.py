"""The one place that knows where things lie on disk."""

import os
from dataclasses import dataclass
from pathlib import Path

from engine.settings import ConfigError

PROJECT = Path(__file__).resolve().parent.parent
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "afs", "9p", "lustre", "glusterfs"}


@dataclass(frozen=True)
class Home:
    """$HYBRIDSUM_HOME, by default the project folder."""

    root: Path

    @classmethod
    def find(cls) -> "Home":
        """The home of this process, its private folder made if need be. Raises ConfigError if it cannot be used."""
        home = cls(Path(os.environ.get("HYBRIDSUM_HOME") or PROJECT).absolute())
        try:
            home.state.mkdir(parents=True, exist_ok=True, mode=0o700)
            home.jobs.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{home.root}: cannot be written ({error.strerror}). Set HYBRIDSUM_HOME to a folder of yours on a local disk"
            ) from None
        kind = file_system(home.state)
        if kind in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"{home.state}: lies on a network file system ({kind}), where locks and the queue database are not safe. "
                "Set HYBRIDSUM_HOME to a folder on a local disk"
            )
        return home

    @property
    def state(self) -> Path:
        return self.root / ".hybridsum"

    @property
    def records(self) -> Path:
        return self.state / "records.json"

    @property
    def queue(self) -> Path:
        return self.state / "queue.db"

    @property
    def runner_lock(self) -> Path:
        return self.state / "runner.lock"

    @property
    def runner_pid(self) -> Path:
        return self.state / "runner.pid"

    @property
    def runner_beat(self) -> Path:
        return self.state / "runner.beat"

    @property
    def runner_log(self) -> Path:
        return self.state / "runner.log"

    def device_lock(self, index: int) -> Path:
        """Held by the process that uses GPU `index`; without a GPU, slot 0 has a lock too."""
        return self.state / f"gpu{index}.lock"

    def device_locks(self) -> list[Path]:
        return sorted(self.state.glob("gpu*.lock"))

    @property
    def jobs(self) -> Path:
        return self.state / "jobs"

    def job(self, job_id: str) -> Path:
        return self.jobs / job_id

    def spec(self, job_id: str) -> Path:
        return self.job(job_id) / "spec.yaml"

    def adjusted(self, job_id: str) -> Path:
        """What the job made smaller to fit into memory; absent if nothing."""
        return self.job(job_id) / "adjusted.yaml"

    def events(self, job_id: str) -> Path:
        return self.job(job_id) / "events.jsonl"

    def log(self, job_id: str) -> Path:
        return self.job(job_id) / "log.txt"

    def cancel(self, job_id: str) -> Path:
        return self.job(job_id) / "cancel"

    def result(self, job_id: str) -> Path:
        return self.job(job_id) / "result.json"

    def job_lock(self, job_id: str) -> Path:
        """Held by the process that works on the job, from before its first instruction to its death."""
        return self.job(job_id) / "lock"

    @property
    def cache(self) -> Path:
        """What follows from the data files alone, and may be removed at any time: records in tokens, where each record lies."""
        return self.state / "cache"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def base(self, fingerprint: str) -> Path:
        """A base model built here, shared by runs."""
        return self.checkpoints / "bases" / fingerprint

    def run(self, run: str) -> Path:
        return self.checkpoints / run

    def phase(self, run: str, phase: str) -> Path:
        return self.run(run) / phase

    def final(self, run: str, phase: str) -> Path:
        """The finished checkpoint of a phase; for the phase `base`, the folder of the base's evaluations."""
        return self.run(run) / "base" if phase == "base" else self.phase(run, phase) / "final"


def file_system(path: Path) -> str:
    """The type of the file system a path lies on, from /proc/mounts; empty where unknown."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    resolved = path.resolve()
    fitting = [(point, kind) for point, kind in mounts if resolved.is_relative_to(point)]
    return max(fitting, key=lambda mount: len(mount[0]), default=("", ""))[1]
