#!/usr/bin/env bash
# Searches an augmentation policy: tools/search_imagenet.sh --help
exec "$(dirname "${BASH_SOURCE[0]}")/python.sh" -m dada_det.commands.search "$@"
