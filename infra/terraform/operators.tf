# What k8s/README.md says is needed before, in the versions that the manifests are checked against.
resource "helm_release" "kuberay" {
  name             = "kuberay-operator"
  repository       = "https://ray-project.github.io/kuberay-helm/"
  chart            = "kuberay-operator"
  version          = "1.7.0"
  namespace        = "kuberay-system"
  create_namespace = true

  values = [yamlencode({
    # The list takes the place of the chart's own, so it is whole.
    featureGates = [
      { name = "RayClusterStatusConditions", enabled = true },
      { name = "RayJobDeletionPolicy", enabled = true },
      { name = "RayMultiHostIndexing", enabled = true },
      { name = "RayServiceIncrementalUpgrade", enabled = true },
      # k8s/overlays/gpu/nightly
      { name = "RayCronJob", enabled = true },
    ]
  })]

  depends_on = [module.eks]
}

resource "helm_release" "kueue" {
  name             = "kueue"
  repository       = "oci://registry.k8s.io/kueue/charts"
  chart            = "kueue"
  version          = "0.19.2"
  namespace        = "kueue-system"
  create_namespace = true

  values = [yamlencode({
    enablePrometheus = true
    managerConfig = {
      controllerManagerConfigYaml = yamlencode({
        apiVersion = "config.kueue.x-k8s.io/v1beta2"
        kind       = "Configuration"
        # All of a job's pods, or none: what does not start in time gives its place back and waits again.
        waitForPodsReady = {
          timeout         = "20m"
          recoveryTimeout = "10m"
          blockAdmission  = true
        }
        integrations = { frameworks = ["ray.io/rayjob", "ray.io/raycluster"] }
      })
    }
  })]

  # Its pod monitor is a kind of the Prometheus operator's.
  depends_on = [helm_release.prometheus]
}

resource "helm_release" "prometheus" {
  # k8s/components/monitoring has this name as label.
  name             = "prometheus"
  repository       = "oci://ghcr.io/prometheus-community/charts"
  chart            = "kube-prometheus-stack"
  version          = "78.5.0"
  namespace        = "monitoring"
  create_namespace = true

  values = [yamlencode({
    grafana = { sidecar = { dashboards = { searchNamespace = "ALL" } } }
  })]

  depends_on = [module.eks]
}

# Labels nodes, and makes their GPUs known. The AMI has the driver.
resource "helm_release" "device_plugin" {
  name             = "nvidia-device-plugin"
  repository       = "https://nvidia.github.io/k8s-device-plugin"
  chart            = "nvidia-device-plugin"
  version          = "0.17.4"
  namespace        = "nvidia-device-plugin"
  create_namespace = true

  values = [yamlencode({
    gfd          = { enabled = true }
    nodeSelector = { "nvidia.com/gpu.present" = "true" }
    tolerations = [
      { key = "nvidia.com/gpu", operator = "Exists", effect = "NoSchedule" },
      { key = "sfumato.io/capacity", operator = "Exists", effect = "NoSchedule" },
    ]
  })]

  depends_on = [module.eks]
}

resource "helm_release" "autoscaler" {
  name       = "cluster-autoscaler"
  repository = "https://kubernetes.github.io/autoscaler"
  chart      = "cluster-autoscaler"
  version    = "9.46.6"
  namespace  = "kube-system"

  values = [yamlencode({
    autoDiscovery = { clusterName = var.name }
    awsRegion     = var.region
    rbac          = { serviceAccount = { name = "cluster-autoscaler" } }
    extraArgs     = { "expander" = "least-waste", "scale-down-unneeded-time" = "10m" }
  })]

  depends_on = [aws_eks_pod_identity_association.autoscaler]
}
