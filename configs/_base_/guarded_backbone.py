"""What every detector here has in common: DADAResNet in mmdet's registry, the guard before training, a seed."""

custom_imports = dict(imports=["dada_det.engine.detection"], allow_failed_imports=False)
custom_hooks = [dict(type="BackboneGuardHook")]
randomness = dict(seed=0)
