"""The functions behind `import finetune`: what the commands do, for notebooks and scripts. No exits, no argv."""
