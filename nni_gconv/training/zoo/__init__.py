"""The networks of the papers, by name; torchvision's and a user's own behind the same call.

Begin with :func:`create_model`. Knows of torch and torchvision; of no training.

>>> from nni_gconv.training.zoo import create_model, list_models
>>> model = create_model("resnet56", num_classes=10)
>>> [name for name in list_models() if name.startswith("vgg")]
['vgg', 'vgg11', 'vgg13', 'vgg16', 'vgg19']
"""

# Each family registers its names as it is imported.
from . import cifar_resnet, condensenet, densenet, preresnet, resnet, vgg
from .factory import ModelSettings, create_model, input_size
from .registry import list_models, register_model
from .weights import load_weights, read_state_dict

__all__ = [
    "ModelSettings",
    "cifar_resnet",
    "condensenet",
    "create_model",
    "densenet",
    "input_size",
    "list_models",
    "load_weights",
    "preresnet",
    "read_state_dict",
    "register_model",
    "resnet",
    "vgg",
]
