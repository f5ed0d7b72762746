"""The golden tensors of the official code through CUDA kernels on the emulator: PVDM_SLOW=1 runs
them, for it takes minutes."""
import os

import test_golden
from common import EMULATOR, Skip


def emulated(test):
    if not os.environ.get("PVDM_SLOW"):
        raise Skip("PVDM_SLOW=1 runs it: minutes on the emulator")
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator was not built")
    flags = test_golden.UNET, test_golden.AE
    test_golden.UNET, test_golden.AE = ([*words, "--target", "simt"] for words in flags)
    os.environ["PVDM_CUDA_DRIVER"] = EMULATOR
    try:
        return test()
    finally:
        test_golden.UNET, test_golden.AE = flags
        del os.environ["PVDM_CUDA_DRIVER"]


def test_unet_forward_simt():
    return emulated(test_golden.test_unet_forward)


def test_unet_gradients_simt():
    return emulated(test_golden.test_unet_gradients)


def test_autoencoder_simt():
    return emulated(test_golden.test_autoencoder)


def test_autoencoder_gradients_simt():
    return emulated(test_golden.test_autoencoder_gradients)
