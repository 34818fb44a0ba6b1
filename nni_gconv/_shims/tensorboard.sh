#!/bin/sh
# NNI starts `tensorboard --bind_all`: open to the network. This one takes its place on PATH.
for arg do
  shift
  case "$arg" in
    --bind_all) set -- "$@" --host "${NNI_BIND_HOST:-127.0.0.1}" ;;
    *) set -- "$@" "$arg" ;;
  esac
done
exec @python@ -m tensorboard.main "$@"
