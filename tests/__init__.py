import os

# Before anything loads torch, and for the programs that tests start: on tiny tensors a second thread
# brings nothing, and where the processor is busy it costs fivefold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
