"""What every detector here has in common: DADAResNet in mmdet's registry, the guard before training, and randomness that
follows from the seed and the place in the run, so that a resumed training ends where an uninterrupted one does."""

custom_imports = dict(imports=["dada_det.engine.detection", "dada_det.engine.exact_resume"], allow_failed_imports=False)
custom_hooks = [dict(type="BackboneGuardHook"), dict(type="ExactResume")]
randomness = dict(seed=0)
