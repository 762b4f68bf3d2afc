"""What the process of a job finds in its environment, so that a CPU computes as fast as it can. What the user has set stays.

Figures: docs/log.md.
"""

from collections.abc import Mapping

# Threads that wait for each other sleep instead of spinning: beside other work on the same cores a product of matrices takes
# 1.6 times as long as alone, not ten times; alone there is no difference.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
# The arrays of a step are as large as those of the step before, so glibc keeps what is freed (up to 32 MiB, its most, from
# one heap, which never shrinks) instead of asking for it page by page again; in huge pages, where the kernel lends them.
KEEPING = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=1099511627776"
}


def of_job(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with these added."""
    return WAITING | KEEPING | dict(environment)
