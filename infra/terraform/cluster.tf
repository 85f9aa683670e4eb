# Labels and taints are those that k8s/components/nvidia and k8s/components/queue look for.
locals {
  gpu_taint = {
    key    = "nvidia.com/gpu"
    value  = "true"
    effect = "NO_SCHEDULE"
  }
  spot_taint = {
    key    = "sfumato.io/capacity"
    value  = "spot"
    effect = "NO_SCHEDULE"
  }
  # For the images, which have CUDA in them, and what workers keep beside the shared folder.
  gpu_disk = {
    root = {
      device_name = "/dev/xvda"
      ebs = {
        volume_size           = 200
        volume_type           = "gp3"
        encrypted             = true
        delete_on_termination = true
      }
    }
  }
}

module "eks" {
  source  = "terraform-aws-modules/eks/aws"
  version = "~> 21.0"

  name               = var.name
  kubernetes_version = var.kubernetes_version

  vpc_id     = module.vpc.vpc_id
  subnet_ids = module.vpc.private_subnets

  endpoint_private_access                  = true
  endpoint_public_access                   = length(var.api_access) > 0
  endpoint_public_access_cidrs             = var.api_access
  enable_cluster_creator_admin_permissions = true

  enabled_log_types = ["api", "audit", "authenticator"]

  addons = {
    coredns    = {}
    kube-proxy = {}
    vpc-cni = {
      before_compute = true
      # Without it NetworkPolicy objects do nothing.
      configuration_values = jsonencode({ enableNetworkPolicy = "true" })
    }
    eks-pod-identity-agent = { before_compute = true }
    aws-ebs-csi-driver = {
      pod_identity_association = [{
        role_arn        = aws_iam_role.csi["ebs"].arn
        service_account = "ebs-csi-controller-sa"
      }]
    }
    aws-efs-csi-driver = {
      pod_identity_association = [{
        role_arn        = aws_iam_role.csi["efs"].arn
        service_account = "efs-csi-controller-sa"
      }]
    }
  }

  eks_managed_node_groups = {
    # Heads, MLflow, Redis, operators, Ray Data.
    general = {
      instance_types = ["m7i.4xlarge"]
      min_size       = 2
      desired_size   = 2
      max_size       = var.most_cpu_nodes
      labels         = { "sfumato.io/capacity" = "on-demand" }
    }
    gpu = {
      ami_type       = "AL2023_x86_64_NVIDIA"
      instance_types = var.gpu_instance_types
      min_size       = 0
      desired_size   = 0
      max_size       = var.most_gpu_nodes
      labels         = { "sfumato.io/capacity" = "on-demand", "nvidia.com/gpu.present" = "true" }
      taints         = { gpu = local.gpu_taint }

      block_device_mappings = local.gpu_disk

      # One zone: gradients between zones are slow, and billed.
      subnet_ids = [module.vpc.private_subnets[0]]
    }
    spot = {
      ami_type       = "AL2023_x86_64_NVIDIA"
      capacity_type  = "SPOT"
      instance_types = var.spot_instance_types
      min_size       = 0
      desired_size   = 0
      max_size       = var.most_gpu_nodes
      labels         = { "sfumato.io/capacity" = "spot", "nvidia.com/gpu.present" = "true" }
      taints         = { gpu = local.gpu_taint, spot = local.spot_taint }

      block_device_mappings = local.gpu_disk
    }
  }
}
