#!/usr/bin/env bash
# Pretrains ResNet-50 with an augmentation policy: tools/pretrain_r50.sh --help
exec "$(dirname "${BASH_SOURCE[0]}")/python.sh" -m dada_det.commands.pretrain "$@"
