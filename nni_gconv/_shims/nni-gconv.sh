#!/bin/sh
# The command of the very Python that started the experiment, whatever else is on PATH.
@environment@exec @python@ -m nni_gconv "$@"
