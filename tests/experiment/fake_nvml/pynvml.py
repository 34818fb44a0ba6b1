"""A driver that reports FAKE_GPUS idle GPUs, in the place of nvidia-ml-py on PYTHONPATH."""

import os


class NVMLError(Exception):
    pass


def nvmlInit():
    if "FAKE_GPUS" not in os.environ:
        raise NVMLError("NVML Shared Library Not Found")


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return int(os.environ["FAKE_GPUS"])


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetUUID(handle):
    return f"GPU-{handle:08d}-fake"
