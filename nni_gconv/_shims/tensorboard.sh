#!/bin/sh
# NNI starts `tensorboard --bind_all`: open to the network and to every page. This one takes its
# place on PATH.
for arg do
  shift
  case "$arg" in
    --bind_all) set -- "$@" --host "${NNI_BIND_HOST:-127.0.0.1}" ;;
    *) set -- "$@" "$arg" ;;
  esac
done
exec @python@ @folder@/tensorboard_guard.py "$@"
