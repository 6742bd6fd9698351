"""How long things may take before something else happens: all time-outs, since they nest.

A thread that reads gives up before the pipeline does, the pipeline before the process ends, and
the warmer's process before the one that waits for it.
"""

# After a stop, each within the next.
READER_GRACE_SECONDS = 0.3  # for reading threads to come back; one that hangs never does
PIPELINE_GRACE_SECONDS = 0.5  # for the pipeline to come back after a signal
LAST_SECONDS = 0.8  # the process has ended by then, whatever its output does
WARMER_LAST_SECONDS = 0.9  # for the warmer to end, before COMMAND's process goes on

# timeout(1) signals its child and then the child's group: the two are one signal.
SAME_SIGNAL_SECONDS = 0.1
# For a stage that hangs when the time limit has passed.
OVERDUE_SECONDS = 1.0
# For a proof behind reads that failed. On NFSv4 an open waits for the client's state manager, on
# soft mounts too, whose reads have long since given up (nfs4_client_recover_expired_lease).
PROOF_IDLE_SECONDS = 30.0
# For a file of metrics: on a disk that others keep busy, an fsync takes seconds.
RECORD_SECONDS = 10.0

POLL_SECONDS = 0.1  # between looks at the progress
# Between lines that say what is waited for; the first one comes after a third of it.
HEARTBEAT_SECONDS = 30.0
EVENT_SECONDS = 5.0  # between objects of progress where no more arrives
KEEPING_SECONDS = 60.0  # between lines that say what was read again
# For the process that closes what hanging threads keep open: far longer than killable threads take
# to die.
DESCRIPTORS_KEPT_SECONDS = 5
